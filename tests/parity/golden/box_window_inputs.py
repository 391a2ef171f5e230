"""Images and boxes that windows are drawn around."""

DRAWS = 1500  # of each case
CASES = {
    "two objects": {"size": (375, 500), "boxes": [[0.2, 0.3, 0.5, 0.55], [0.6, 0.1, 0.9, 0.2]], "min_covered": 0.5},
    "any window": {"size": (60, 81), "boxes": [[0.2, 0.3, 0.5, 0.55]], "min_covered": 0.0},
    "a large object": {"size": (500, 281), "boxes": [[0.1, 0.1, 0.9, 0.9]], "min_covered": 0.9},
    "no object": {"size": (300, 300), "boxes": [], "min_covered": 0.9},
}
