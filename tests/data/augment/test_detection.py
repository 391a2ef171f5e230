"""Augmentation with boxes: they bound what they bounded, and windows are those of TensorFlow's operation."""

import pickle

import numpy as np
import pytest

from flax_mnv2.data.augment import detection as augment
from flax_mnv2.data.augment.box_crop import AREA, ASPECT, corners, covered, draw_window
from flax_mnv2.data.augment.detection import DetectionAugment, Picture
from flax_mnv2.data.augment.random_crop import Box

SIZES = [(60, 80), (120, 50), (31, 300), (64, 64)]


def drawn(size, seed, *, count=1):
    """A black image with white rectangles at whole pixels, and their boxes."""
    rng = np.random.default_rng(seed)
    height, width = size
    image, rows = np.zeros((*size, 3), np.uint8), []
    for _ in range(count):
        y = np.sort(rng.choice(np.arange(0, height + 1, 2), 2, replace=False))
        x = np.sort(rng.choice(np.arange(0, width + 1, 2), 2, replace=False))
        image[y[0] : y[1], x[0] : x[1]] = 255
        rows.append([y[0] / height, x[0] / width, y[1] / height, x[1] / width])
    return Picture(image, np.array(rows, np.float32), np.zeros(count, bool), np.arange(count))


def bounds(image):
    """Corners in pixels of what is brighter than half, which padding is not."""
    rows, columns = np.nonzero(image[..., 0] > 140)
    return np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])


def in_pixels(picture):
    return picture.boxes.astype(float) * (picture.image.shape[:2] * 2)


def applied(augmentation):
    def change(picture, rng):
        image, boxes, rows = augmentation(picture.image, picture.boxes, rng)
        return Picture(image, boxes, picture.ignored[rows], rows)

    return change


def changes():
    return {
        "flip": lambda picture, rng: augment.flip(picture),
        "crop": lambda picture, rng: augment.random_crop(picture, rng, overlap=0.3),
        "expand": lambda picture, rng: augment.random_expand(picture, rng, max_factor=4),
        "stretch": lambda picture, rng: augment.stretch(picture, (96, 57)),
        "letterbox": lambda picture, rng: augment.letterbox(picture, (48, 96)),
        "all": applied(DetectionAugment(size=(64, 96), expand=3, keep_aspect=True)),
        "stretched": applied(DetectionAugment(size=(96, 64), expand=2)),
    }


@pytest.mark.parametrize("name", changes())
@pytest.mark.parametrize("size", SIZES)
def test_the_box_bounds_the_rectangle(size, name):
    compared = 0
    for seed in range(25):
        before = drawn(size, seed)
        after = changes()[name](before, np.random.default_rng(seed))
        assert ((after.boxes >= 0) & (after.boxes <= 1)).all()
        assert after.boxes.dtype == np.float32
        assert len(after.boxes) == len(after.rows) == len(after.ignored)
        sides = np.diff(in_pixels(after).reshape(-1, 2, 2), axis=1)
        if len(sides) and sides.min() > 2:  # thinner ones may fade away
            np.testing.assert_allclose(bounds(after.image), in_pixels(after)[0], rtol=0, atol=1)
            compared += 1
    assert compared >= 8


@pytest.mark.parametrize("overlap", [0.0, 0.13, 0.51, 0.89, 1.0])  # no ratios of pixels
def test_cropped_boxes_are_those_with_enough_of_them_inside(overlap):
    for seed in range(40):
        picture = drawn((90, 70), seed, count=6)
        window = draw_window((90, 70), picture.boxes, np.random.default_rng(seed), min_covered=overlap)
        after = augment.crop_to(picture, window, overlap=overlap)
        expected = {}
        for row, (y0, x0, y1, x1) in enumerate(np.rint(in_pixels(picture)).astype(int)):
            inside = np.zeros((90, 70), bool)
            inside[y0:y1, x0:x1] = True
            part = inside[window.top : window.top + window.height, window.left : window.left + window.width]
            if part.any() and part.sum() / inside.sum() >= overlap:
                expected[row] = bounds(part[..., None] * 255)
        assert after.rows.tolist() == list(expected)
        np.testing.assert_allclose(in_pixels(after), np.array(list(expected.values())).reshape(-1, 4), atol=1e-3)


def test_ignored_boxes_stay_while_any_of_them_is_seen():
    boxes = np.array([[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.6, 0.6, 1, 1]], np.float32)
    picture = Picture(np.zeros((100, 100, 3), np.uint8), boxes, np.array([True, False, True]), np.arange(3))
    after = augment.crop_to(picture, Box(10, 10, 45, 45), overlap=0.9)
    assert (after.rows.tolist(), after.ignored.tolist()) == ([0], [True])
    np.testing.assert_array_equal(after.boxes, [[0, 0, 1, 1]])


@pytest.mark.parametrize("size", [(375, 500), (500, 281), (40, 40)])
@pytest.mark.parametrize("min_covered", [0.0, 0.5, 1.0])
def test_windows_are_as_asked(size, min_covered):
    height, width = size
    boxes = np.array([[0.2, 0.3, 0.5, 0.55], [0.6, 0.1, 0.9, 0.2]], np.float32)
    pixels = (boxes * (size * 2)).astype(int)
    rng, whole = np.random.default_rng(0), 0
    for _ in range(300):
        window = draw_window(size, boxes, rng, min_covered=min_covered)
        assert 0 <= window.top <= height - window.height
        assert 0 <= window.left <= width - window.width
        if window == Box(0, 0, height, width):
            whole += 1
            continue
        assert AREA[0] <= window.height * window.width / (height * width) <= AREA[1]
        # The width is rounded.
        assert ASPECT[0] - 0.51 / window.height <= window.width / window.height <= ASPECT[1] + 0.51 / window.height
        assert covered(corners(window), pixels).max() >= min_covered
    assert whole < 30


def test_where_no_window_does_the_image_stays():
    rng = np.random.default_rng(0)
    everywhere, speck = np.array([[0, 0, 1, 1.0]]), np.array([[0.5, 0.5, 0.501, 0.501]])
    for boxes, min_covered in ((everywhere, 1.0), (speck, 0.0), (np.zeros((0, 4)), 1.0)):
        assert draw_window((60, 200), boxes, rng, min_covered=min_covered) == Box(0, 0, 60, 200)
    assert draw_window((60, 90), np.zeros((0, 4)), rng, min_covered=0.3) != Box(0, 0, 60, 90)


def test_the_fraction_of_whole_images_and_of_flips():
    picture = drawn((40, 60), 3)
    marked = picture._replace(image=picture.image // 2)
    marked.image[0, 0] = 255
    for whole in (0.15, 1 / 6, 1.0):
        transform = DetectionAugment(size=(40, 60), crop_whole=whole, crop_overlaps=(0.1,))
        rng = np.random.default_rng(0)
        images = [transform(marked.image, marked.boxes, rng)[0] for _ in range(600)]
        straight = sum(np.array_equal(image, marked.image) for image in images)
        mirrored = sum(np.array_equal(image, marked.image[:, ::-1]) for image in images)
        assert straight + mirrored == pytest.approx(600 * whole, abs=40)
        assert straight == pytest.approx(mirrored, abs=60)


def test_all_randomness_is_the_generators():
    picture = drawn((60, 80), 1, count=4)
    transform = pickle.loads(pickle.dumps(DetectionAugment(size=(48, 48), expand=2, photometric=True)))
    one, again, other = (transform(picture.image, picture.boxes, np.random.default_rng(seed)) for seed in (7, 7, 8))
    for first, second in zip(one, again, strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(one[0], other[0])
    assert one[0].shape == (48, 48, 3)
    assert one[0].flags.c_contiguous


def test_an_image_without_boxes_and_one_that_is_only_resized():
    image = np.zeros((30, 50, 3), np.uint8)
    for seed in range(20):
        transform = DetectionAugment(size=(20, 24), expand=2, keep_aspect=seed % 2 == 0)
        after, boxes, rows = transform(image, np.zeros((0, 4), np.float32), np.random.default_rng(seed))
        assert (after.shape, boxes.shape, rows.shape) == ((20, 24, 3), (0, 4), (0,))
    picture = drawn((60, 80), 1, count=4)
    plain = DetectionAugment(size=(30, 40), crop="none", flip=False)
    _, boxes, rows = plain(picture.image, picture.boxes, np.random.default_rng(0))
    np.testing.assert_array_equal(boxes, picture.boxes)
    assert rows.tolist() == [0, 1, 2, 3]


def test_letterbox_can_be_undone():
    picture = drawn((60, 200), 5)
    after = augment.letterbox(picture, (96, 96))
    fitted = augment.fitting((60, 200), (96, 96))
    assert fitted == (29, 96)
    np.testing.assert_allclose(after.boxes / (np.array(fitted * 2) / 96), picture.boxes, rtol=1e-6)
    assert (after.image[29:] == augment.IMAGE_PADDING).all()
    assert augment.fitting((1000, 1), (96, 96)) == (96, 1)


def test_colours_change_by_their_strength_and_probability():
    image = np.random.default_rng(0).integers(60, 190, (16, 20, 3), np.uint8)
    rng, kept, greatest = np.random.default_rng(1), 0, 0
    for _ in range(300):
        after = augment.distort_colors(image, rng, probability=0.5)
        assert (after.shape, after.dtype) == (image.shape, np.uint8)
        kept += np.array_equal(after, image)
        greatest = max(greatest, abs(int(after.mean()) - int(image.mean())))
    assert kept == pytest.approx(300 / 16, abs=14)
    assert 40 < greatest < 110
    np.testing.assert_array_equal(augment.distort_colors(image, rng, probability=0.0), image)


def test_ignored_boxes_of_an_example_stay_too():
    image, boxes = np.zeros((50, 50, 3), np.uint8), np.array([[0, 0, 1, 1], [0.2, 0.2, 0.4, 0.4]], np.float32)
    transform = DetectionAugment(size=(32, 32), crop_whole=0, crop_overlaps=(1.0,), crop_area=(0.1, 0.5))
    for seed in range(10):
        rng = np.random.default_rng(seed)
        assert transform(image, boxes, rng)[2].tolist() == [1]
        assert transform(image, boxes, rng, ignored=np.array([True, False]))[2].tolist() == [0, 1]
