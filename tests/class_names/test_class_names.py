"""Names of classes that weights do not bring: those of the published label maps."""

import json

import pytest

from flax_mnv2.class_names import VOC_LABELS, imagenet_labels, usual_names


def test_names_are_told_by_the_number_of_classes():
    assert usual_names(1000, "classification")[281] == usual_names(1001, "classification")[282] == "tabby, tabby cat"
    assert usual_names(1001, "classification")[0] == usual_names(21, "segmentation")[0] == "background"
    assert usual_names(21, "segmentation")[12] == "dog"
    for number, task in ((21, "classification"), (1001, "segmentation"), (5, "classification"), (2, "backbone")):
        assert usual_names(number, task) is None
    assert (len(set(imagenet_labels())), len(set(VOC_LABELS))) == (999, 21)  # crane, bird and machine


@pytest.mark.parametrize("name", ["mobilenet_v2_1.0_224", "deeplabv3_mobilenet_v2_1.0_513"])
def test_they_are_hugging_face_s(shared, name):
    names = json.loads((shared / "weights" / name / "config.json").read_text())["id2label"]
    task = "segmentation" if len(names) == 21 else "classification"
    assert usual_names(len(names), task) == {int(index): label for index, label in names.items()}
