"""Data sets whose masks are in range and mean something else: refused as a whole, unless the user says otherwise."""

import numpy as np
import pytest

from flax_mnv2.data.decode import decode_mask
from flax_mnv2.data.labels.histogram import LabelHistogram
from flax_mnv2.errors import ConfigError, DataError

SHAPE = (60, 80)


def mask(**areas):
    """A mask of 0 with areas of other values."""
    pixels = np.zeros(SHAPE, np.uint8)
    for value, area in areas.items():
        pixels[area] = int(value[1:])
    return pixels


OBJECT = np.s_[10:50], np.s_[10:60]
BORDER = mask(v1=OBJECT)
BORDER[8:12, 10:60] = 255
CRACK = mask()
CRACK[30] = 255


@pytest.fixture
def voc(archives, tmp_path):
    def write(masks):
        """A data set whose train and val have these masks."""
        files = archives.voc_files(root="", splits={"train": ["a"], "val": ["b"]})
        for name, pixels in zip("ab", masks, strict=True):
            files[f"JPEGImages/{name}.jpg"] = archives.jpeg(*pixels.shape[:2])
            files[f"SegmentationClass/{name}.png"] = archives.palette_png(pixels)
        return str(archives.write(tmp_path / "voc", files))

    return write


def test_an_object_that_is_the_ignore_label(voc, load):
    """0 and 255, as most annotation tools and Kaggle write two classes: the object would be ignored everywhere."""
    path = voc([mask(v255=OBJECT)] * 2)
    message = r"class 1 'lesion' has no pixel in train, val, while the ignore label 255 fills 42% .*label_map=0:0,255:1"
    with pytest.raises(DataError, match=message):
        load(archive=path, labels="background,lesion")
    dataset = load(archive=path, labels="background,lesion", label_map="0:0,255:1")
    np.testing.assert_array_equal(decode_mask(dataset.source("train")[0]["segmentation_mask"]), mask(v1=OBJECT))
    assert dataset.ignore_label == 255
    kept = load(archive=path, labels="background,lesion", label_map="as_is")
    assert "no pixel in train: lesion" in kept.notes()
    assert kept.pixels["val"] == {"pixels": [2800, 0], "ignored": 2000, "solid": 1656}


@pytest.mark.parametrize(
    ("masks", "labels", "message"),
    [
        ([CRACK, CRACK], "background,crack", "class 1 'crack' has no pixel"),  # thin, and all there is
        ([mask(v255=OBJECT, v1=np.s_[:5])] * 2, "background,cat,dog", "class 2 'dog' has no pixel"),
        ([mask(v1=np.s_[:30], v2=np.s_[30:])] * 2, "a,b,c", "class 0 'a' has no pixel.*reduce_labels=True"),
        ([np.full(SHAPE, 255, np.uint8)] * 2, "a,b", "class 0 'a' .and 1 more. has no pixel"),
    ],
)
def test_other_masks_that_cannot_mean_this(voc, load, masks, labels, message):
    path = voc(masks)
    with pytest.raises(DataError, match=message):
        load(archive=path, labels=labels)
    assert load(archive=path, labels=labels, label_map="as_is").num_examples == {"train": 1, "val": 1}


@pytest.mark.parametrize(
    ("masks", "labels"),
    [
        ([BORDER, mask()], "background,cat"),  # a border, and a split without the class
        ([BORDER, BORDER], "background,cat,dog"),  # a border, and a class that is nowhere
        ([mask(v1=np.s_[:9], v255=OBJECT), mask(v255=OBJECT)], "background,cat"),  # ignored areas beside all classes
        ([mask(), mask()], "background,cat"),  # nothing is labelled yet
    ],
)
def test_what_may_be_meant_is_taken(voc, load, masks, labels):
    dataset = load(archive=voc(masks), labels=labels)
    assert dataset.num_examples == {"train": 1, "val": 1}


def test_classes_from_one(voc, load):
    path = voc([mask(v1=np.s_[:20], v2=np.s_[20:40], v3=np.s_[40:50])] * 2)
    with pytest.raises(DataError, match=r"a\.png: the mask has the value 3, expected 0 … 2 .*reduce_labels=True"):
        load(archive=path)
    reduced = load(archive=path, reduce_labels=True)
    stored = decode_mask(reduced.source("val")[0]["segmentation_mask"])
    assert np.unique(stored).tolist() == [0, 1, 2, 255]
    with pytest.raises(ConfigError, match="only one can say what masks mean"):
        load(archive=path, reduce_labels=True, label_map="as_is")


def test_the_histogram_is_shown(voc, load):
    dataset = load(archive=voc([BORDER, mask()]), labels="background,cat")
    assert dataset.histogram() == [
        "class            train         val",
        "background     56.250%    100.000%",
        "cat            39.583%           -",
        "(ignored)       4.167%           -",
    ]
    assert "no pixel in val: cat" in dataset.notes()


def test_borders_are_not_solid_and_objects_are():
    """At the size of VOC's photos, whose borders are ten pixels where two objects meet."""
    histogram = LabelHistogram(2, 255)
    pixels = np.zeros((375, 500), np.uint8)
    pixels[100:110] = 255
    histogram.add(pixels)
    assert histogram.to_dict() == {"pixels": [182500, 0], "ignored": 5000, "solid": 0}
    pixels[200:300, 200:300] = 255
    histogram.add(pixels)
    assert histogram.to_dict()["solid"] == 88 * 88


def test_an_image_in_both_splits_is_told(voc, load, tmp_path):
    path = voc([BORDER, mask()])
    (tmp_path / "voc" / "ImageSets" / "Segmentation" / "val.txt").write_text("b\na\n")
    assert "train and val have 1 ids in common, such as a" in load(archive=path, labels="background,cat").notes()
