"""A photo has the same pixels in training, in evaluation and in prediction, those that its owner sees."""

import io

import numpy as np
import pytest
from pictures import encode, photo
from PIL import Image

from flax_mnv2.data.augment.random_crop import decode_pad_crop, decode_random_crop
from flax_mnv2.data.datasets.examples import check_image, checked_mask
from flax_mnv2.data.decode import decode_image, decode_mask, decode_rgb
from flax_mnv2.data.labels.masks import MaskRule
from flax_mnv2.data.labels.names import LabelNames
from flax_mnv2.errors import DataError
from flax_mnv2.image_processing import reading

TURNS = {  # what a viewer does for each EXIF orientation
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}
KINDS = [
    *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
    *(("PNG", mode) for mode in ("RGB", "RGBA", "LA", "P", "L", "1", "I;16")),
    *(("TIFF", mode) for mode in ("RGB", "RGBA", "L", "I;16", "CMYK")),
    *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    *(("AVIF", mode) for mode in ("RGB", "RGBA")),
    *(("GIF", "P"), ("BMP", "RGB"), ("JPEG2000", "RGB"), ("PPM", "RGB"), ("PPM", "L")),
]


def stored(kind, mode, orientation=1):
    """The same picture in a file, of 16 rows and 24 columns before it is turned."""
    image = photo(16, 24).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, kind, **({} if orientation == 1 else {"exif": exif}))


@pytest.mark.parametrize(("kind", "mode"), KINDS)
def test_train_evaluation_and_prediction_see_one_picture(tmp_path, kind, mode):
    turnable = kind in ("JPEG", "PNG", "TIFF", "WEBP", "AVIF")
    for orientation in TURNS if turnable else (1,):
        data = stored(kind, mode, orientation)
        (tmp_path / "a").write_bytes(data)
        seen = reading.read_picture(tmp_path / "a", "photo")
        assert seen.shape == ((24, 16, 3) if orientation >= 5 else (16, 24, 3))
        np.testing.assert_array_equal(decode_image(data), seen, err_msg=f"training, {orientation}")
        np.testing.assert_array_equal(np.asarray(decode_rgb(data)), seen, err_msg=f"evaluation, {orientation}")
        check_image(data, "a")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_every_orientation_is_turned_as_viewers_do(tmp_path, kind, mode):
    upright = decode_image(stored(kind, mode))
    for orientation, turn in TURNS.items():
        (tmp_path / "a").write_bytes(stored(kind, mode, orientation))
        np.testing.assert_array_equal(decode_image((tmp_path / "a").read_bytes()), turn(upright))
        # By its path too: Pillow maps such a TIFF into memory, and then does not turn it.
        np.testing.assert_array_equal(reading.read_picture(tmp_path / "a", "photo"), turn(upright))


def test_transparency_is_white_and_16_bits_become_8():
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[1:3, 1:3] = (200, 60, 30, 255)
    decoded = decode_image(encode(Image.fromarray(pixels), "PNG"))
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert decoded[1, 1].tolist() == [200, 60, 30]
    deep = encode(Image.fromarray(np.full((4, 4), 40_000, np.uint16)), "PNG")
    assert np.unique(decode_image(deep)).tolist() == [round(40_000 / 257)]


def test_crops_for_training_are_of_the_upright_picture():
    data = stored("JPEG", "RGB", 6)
    whole = decode_pad_crop(data, np.random.default_rng(0), size=16, padding=0, flip=False)
    assert whole.shape == (16, 16, 3)
    narrow = decode_random_crop(
        data, np.random.default_rng(0), size=24, area=(1, 1), aspect=(16 / 24, 16 / 24), flip=False
    )
    as_stored = decode_random_crop(
        data, np.random.default_rng(0), size=24, area=(1, 1), aspect=(24 / 16, 24 / 16), flip=False, as_stored=True
    )
    assert np.abs(narrow.astype(int) - np.rot90(as_stored, -1)).mean() < 1


def test_imagenet_is_decoded_as_it_is_stored():
    turned, transparent = stored("JPEG", "RGB", 6), encode(Image.new("RGBA", (8, 8)), "PNG")
    for decode in (decode_image, lambda data, **rule: np.asarray(decode_rgb(data, **rule))):
        assert decode(turned, as_stored=True).shape == (16, 24, 3)
        assert not decode(transparent, as_stored=True).any()
        with pytest.raises(DataError, match="its format is none of JPEG, PNG, WEBP, BMP"):
            decode(stored("GIF", "P"), as_stored=True)


def test_damaged_exif_is_no_exif(tmp_path):
    data = encode(photo(16, 24), "JPEG", exif=b"Exif\0\0rubbish that is no TIFF header")
    (tmp_path / "a.jpg").write_bytes(data)
    assert decode_image(data).shape == (16, 24, 3)
    np.testing.assert_array_equal(reading.read_picture(tmp_path / "a.jpg", "photo"), np.asarray(decode_rgb(data)))


def _check(image, mask):
    rule = MaskRule(labels=LabelNames(("a", "b")), ignore_label=255)
    return checked_mask(image=image, image_name="a.jpg", mask=mask, mask_name="a.png", rule=rule)


def test_masks_belong_to_the_upright_photo():
    data = stored("JPEG", "RGB", 6)  # upright it has 24 rows and 16 columns
    assert _check(data, encode(Image.new("L", (16, 24)), "PNG")).shape == (24, 16)
    with pytest.raises(DataError, match=r"a\.png: the mask is 24x16, its photo 16x24 .* EXIF orientation 6"):
        _check(data, encode(Image.new("L", (24, 16)), "PNG"))
    with pytest.raises(DataError, match=r"a\.png: the mask is 9x9, its image 16x24"):
        _check(data, encode(Image.new("L", (9, 9)), "PNG"))


def test_a_mask_that_would_be_turned_itself_is_refused():
    exif = Image.Exif()
    exif[0x0112] = 3
    buffer = io.BytesIO()
    Image.new("L", (16, 16)).save(buffer, "PNG", exif=exif)
    with pytest.raises(DataError, match="EXIF orientation 3"):
        decode_mask(buffer.getvalue())
