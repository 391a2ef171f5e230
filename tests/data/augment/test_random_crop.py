import cv2
import numpy as np
import pytest

from flax_mnv2.data.augment.random_crop import AREA, ASPECT, decode_random_crop, draw_box
from flax_mnv2.data.decode import decode_image
from flax_mnv2.errors import DataError


def _jpeg(height, width):
    """A smooth picture whose red grows to the right and green downwards."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 2] = np.linspace(0, 255, width)[None]
    image[..., 1] = np.linspace(0, 255, height)[:, None]
    return cv2.imencode(".jpg", image)[1].tobytes()


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (224, 224), (40, 300)])
def test_boxes_are_distributed_as_torchvisions(size):
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision.transforms")
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    image = torch.zeros((1, *size))
    theirs = np.array([transforms.RandomResizedCrop.get_params(image, AREA, ASPECT) for _ in range(4000)])
    ours = np.array([draw_box(*size, rng) for _ in range(4000)])
    for measure in (
        lambda boxes: boxes[:, 2] * boxes[:, 3],  # area
        lambda boxes: boxes[:, 3] / boxes[:, 2],  # aspect
        lambda boxes: boxes[:, 0],
        lambda boxes: boxes[:, 1],
    ):
        both = np.sort(np.concatenate([measure(ours), measure(theirs)]))
        shares = [np.searchsorted(np.sort(measure(boxes)), both, side="right") / 4000 for boxes in (ours, theirs)]
        # Kolmogorov and Smirnov: the same distribution stays below 0.0437 with probability 0.999.
        assert np.abs(shares[0] - shares[1]).max() < 0.0437


def test_boxes_lie_in_the_image():
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (1, 50), (50, 1), (3, 200), (97, 130)):
        for _ in range(200):
            box = draw_box(height, width, rng)
            assert box.height > 0
            assert box.width > 0
            assert 0 <= box.top <= height - box.height
            assert 0 <= box.left <= width - box.width


def test_too_long_images_give_the_middle():
    rng = np.random.default_rng(0)
    assert draw_box(30, 3000, rng, area=(0.9, 1.0)) == (0, 1480, 30, 40)
    assert draw_box(3000, 30, rng, area=(0.9, 1.0)) == (1480, 0, 40, 30)


def test_the_whole_image():
    data = _jpeg(64, 64)
    whole = {"area": (1.0, 1.0), "aspect": (1.0, 1.0)}
    result = decode_random_crop(data, np.random.default_rng(0), size=64, flip=False, **whole)
    np.testing.assert_array_equal(result, decode_image(data))


@pytest.mark.parametrize("options", [{}, {"antialias": False}, {"flip": False}])
@pytest.mark.parametrize("size", [(375, 500), (64, 48), (1200, 900)])
def test_examples(size, options):
    data = _jpeg(*size)
    examples = [decode_random_crop(data, np.random.default_rng(3), size=96, **options) for _ in range(2)]
    assert examples[0].shape == (96, 96, 3)
    assert examples[0].dtype == np.uint8
    np.testing.assert_array_equal(*examples)  # the generator decides alone
    assert not np.array_equal(examples[0], decode_random_crop(data, np.random.default_rng(4), size=96, **options))


@pytest.mark.parametrize("size", [(320, 400), (150, 300), (700, 500), (1500, 2400), (60, 1500), (100, 100)])
def test_shrinking_is_as_smooth_as_pillows(size):
    """Noise, where every aliased pixel shows."""
    image = pytest.importorskip("PIL.Image")
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    data = cv2.imencode(".png", noise[..., ::-1])[1].tobytes()
    whole = {"size": 128, "area": (1.0, 1.0), "aspect": (size[1] / size[0],) * 2, "flip": False}
    ours, aliased = (
        decode_random_crop(data, np.random.default_rng(0), antialias=antialias, **whole).astype(float)
        for antialias in (True, False)
    )
    theirs = np.asarray(image.fromarray(noise).resize((128, 128), image.Resampling.BILINEAR)).astype(float)
    error, aliased_error = (np.sqrt(np.mean((each - theirs) ** 2)) for each in (ours, aliased))
    if max(size) > 128:
        assert error < 0.6 * aliased_error
        assert ours.std() < 1.55 * theirs.std()  # Pillow's filter is a tent, twice as wide as a box: 1.5
    else:
        np.testing.assert_allclose(ours, theirs, atol=2)


def test_mirrored_half_of_the_time():
    data = _jpeg(60, 80)
    rng = np.random.default_rng(0)
    examples = [decode_random_crop(data, rng, size=32).astype(int) for _ in range(400)]
    mirrored = np.mean([example[:, 0, 0].mean() > example[:, -1, 0].mean() for example in examples])
    assert abs(mirrored - 0.5) < 0.1
    rng = np.random.default_rng(0)
    examples = [decode_random_crop(data, rng, size=32, flip=False).astype(int) for _ in range(50)]
    assert all(example[:, 0, 0].mean() < example[:, -1, 0].mean() for example in examples)


def test_options_do_not_change_the_window():
    """Both ways of shrinking show the same part of the image, up to rounding."""
    data = _jpeg(1200, 1600)
    for seed in range(20):
        plain = decode_random_crop(data, np.random.default_rng(seed), size=64)
        other = decode_random_crop(data, np.random.default_rng(seed), size=64, antialias=False)
        np.testing.assert_allclose(other.astype(int), plain, atol=8)


def test_unreadable():
    for data in (b"", b"no image"):
        with pytest.raises(DataError, match="not a readable"):
            decode_random_crop(data, np.random.default_rng(0), size=32)
