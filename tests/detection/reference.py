"""The detector's arithmetic once more, in float64 NumPy and plain loops, from the sources that the facts name."""

import numpy as np


def anchors_of(height, width, map_sizes):
    """The TF Object Detection API's: scales from 0.2 to 0.95, three anchors on the first map and six on all others."""
    scales = [0.2 + 0.75 * index / 5 for index in range(6)] + [1.0]
    shorter, rows = min(height, width), []
    for index, (map_height, map_width) in enumerate(map_sizes):
        scale = scales[index]
        kinds = [(scale, 1.0), (scale, 2.0), (scale, 0.5), (scale, 3.0), (scale, 0.3333)]
        kinds.append((np.sqrt(scale * scales[index + 1]), 1.0))
        if index == 0:
            kinds = [(0.1, 1.0), (0.2, 2.0), (0.2, 0.5)]
        for y in range(map_height):
            for x in range(map_width):
                for size, ratio in kinds:
                    sides = size / np.sqrt(ratio) * shorter / height, size * np.sqrt(ratio) * shorter / width
                    rows.append(((y + 0.5) / map_height, (x + 0.5) / map_width, *sides))
    return np.array(rows)


def overlap(one, other):
    """IoU of two boxes, as lists: plain numbers, since this is asked most."""
    (y0, x0, y1, x1), (v0, u0, v1, u1) = one, other
    common = max(min(y1, v1) - max(y0, v0), 0.0) * max(min(x1, u1) - max(x0, u0), 0.0)
    union = (y1 - y0) * (x1 - x0) + (v1 - v0) * (u1 - u0) - common
    return common / union if union > 0 else 0.0


def corners(anchor):
    return np.array([*(anchor[:2] - anchor[2:] / 2), *(anchor[:2] + anchor[2:] / 2)])


def match(boxes, labels, ignored, anchors, threshold=0.5):
    """(row of its box or -1, whether it is ignored) of each anchor."""
    rows = [row for row in range(len(boxes)) if labels[row] >= 0 and not ignored[row]]
    places = [corners(anchor).tolist() for anchor in anchors]
    table = {row: np.array([overlap(boxes[row].tolist(), place) for place in places]) for row in rows}
    matched = np.full(len(anchors), -1)
    for at in range(len(anchors)):
        best = max(rows, key=lambda row: (table[row][at], -row), default=None)
        if best is not None and table[best][at] >= threshold:
            matched[at] = best
    for row in reversed(rows):  # the first of several that claim an anchor has the last word
        matched[int(np.argmax(table[row]))] = row
    out = np.zeros(len(anchors), bool)
    for row in range(len(boxes)):
        if labels[row] >= 0 and ignored[row]:
            for at, anchor in enumerate(anchors):
                inner = corners(anchor)
                sides = np.minimum(inner[2:], boxes[row][2:]) - np.maximum(inner[:2], boxes[row][:2])
                out[at] |= np.prod(np.maximum(sides, 0)) >= 0.5 * np.prod(anchor[2:])
    return matched, out & (matched < 0)


def encode(box, anchor, scales):
    centre, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2] + 1e-8
    side = anchor[2:] + 1e-8
    return np.array([*((centre - anchor[:2]) / side), *np.log(size / side)]) * scales


def decode(code, anchor, scales):
    code = code / scales
    centre, size = code[:2] * anchor[2:] + anchor[:2], np.exp(code[2:]) * anchor[2:]
    return np.array([*(centre - size / 2), *(centre + size / 2)])


def suppressed(boxes, scores, threshold, limit):
    """Positions that greedy suppression leaves, in the order of their scores, the first of equal ones first."""
    left, kept, boxes = sorted(range(len(boxes)), key=lambda at: (-scores[at], at)), [], boxes.tolist()
    for at in left:
        if all(overlap(boxes[at], boxes[other]) <= threshold for other in kept):
            kept.append(at)
    return kept[:limit]


def loss(logits, codes, boxes, labels, ignored, anchors, spec):
    """(class loss, box loss, positives) of one image."""
    scales = np.array(spec.box_scales)
    matched, out = match(boxes, labels, ignored, anchors)
    class_losses = np.zeros(len(anchors))
    for at, logit in enumerate(logits):
        truth = np.zeros(len(logit))
        slot = labels[matched[at]] + (spec.background == "first") if matched[at] >= 0 else None
        if slot is None:
            slot = {"first": 0, "last": len(logit) - 1, "none": None}[spec.background]
        if slot is not None:
            truth[slot] = 1
        if spec.score == "softmax":
            class_losses[at] = np.log(np.exp(logit - logit.max()).sum()) + logit.max() - logit[truth > 0][0]
            continue
        p = 1 / (1 + np.exp(-logit))
        entropy = -(truth * np.log(p) + (1 - truth) * np.log(1 - p))
        if spec.focal_gamma:
            entropy *= np.where(truth > 0, spec.focal_alpha * (1 - p) ** 2, (1 - spec.focal_alpha) * p**2)
        class_losses[at] = entropy.sum()
    counted = [at for at in range(len(anchors)) if not out[at]]
    if not spec.focal_gamma:
        if spec.mining_iou < 1:
            decoded = np.array([decode(codes[at], anchors[at], scales) for at in counted])
            kept = suppressed(decoded, class_losses[counted], spec.mining_iou, 3000)
            counted = [counted[at] for at in kept]
        else:
            counted.sort(key=lambda at: (-class_losses[at], at))
        positives = [at for at in counted if matched[at] >= 0]
        negatives = [at for at in counted if matched[at] < 0]
        counted = positives + negatives[: int(max(3 * len(positives), 3))]
    box_loss = 0.0
    for at in counted:
        if matched[at] >= 0:
            error = np.abs(codes[at] - encode(boxes[matched[at]], anchors[at], scales))
            box_loss += np.where(error <= 1, 0.5 * error**2, error - 0.5).sum()
    return class_losses[counted].sum(), spec.box_loss_weight * box_loss, (matched >= 0).sum()
