"""Anchors for the boxes of a run: printed as its config takes them, with what they reach."""

import sys

import box_archives
import numpy as np
import pytest
import voc_archives
from absl import flags
from ml_collections import config_flags

from flax_mnv2.errors import ConfigError
from flax_mnv2.tools import anchors
from flax_mnv2.training.config.defaults import default_config


@pytest.fixture
def config(tmp_path):
    """A run on drawn data, whose boxes in training are (6, 10), (20, 30) of 20x30 pixels and an ignored one."""
    config = default_config("detection")
    config.data.dataset = "voc_detection/custom"
    config.data.archive = str(voc_archives.write(tmp_path / "x", box_archives.voc_files()))
    config.data.data_dir = str(tmp_path / "prepared")
    config.data.image_size = (320, 160)
    return config


def test_anchors_of_a_run(config):
    found, names = anchors.fit(config, num_anchors=2)
    assert names == ("cat", "dog")
    assert found.labels.tolist() == [1, 0]
    # Heights and widths of 6/20 and 10/30 of the image, in units of its shorter side: twice as high as wide.
    assert found.spec.anchors[2] == ((0.6, 0.3333),)
    assert found.spec.anchors[5] == ((2.0, 1.0),)
    assert (found.after >= found.before - 1e-6).all()
    assert found.after[1] == pytest.approx(1, abs=1e-3)  # the whole image, on the map of one place
    assert found.num_after < found.num_before
    lines = anchors.table(found, names)
    assert lines[1].split() == ["all", "2", f"{np.mean(found.before >= 0.5):.1%}", f"{np.mean(found.after >= 0.5):.1%}"]
    assert [line.split()[:2] for line in lines[2:4]] == [["cat", "1"], ["dog", "1"]]


def test_what_is_printed_is_what_the_command_line_takes(config, monkeypatch):
    found, _ = anchors.fit(config, num_anchors=2)
    monkeypatch.setattr("sys.argv", ["command", anchors.as_flag(found.spec).replace('"', "")])  # as a shell passes it
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values)
    values(sys.argv)
    again, _ = anchors.fit(values.config, num_anchors=2)
    assert again.num_before == found.num_after
    np.testing.assert_allclose(again.before, found.after, rtol=1e-3)


def test_only_detection_has_anchors():
    with pytest.raises(ConfigError, match="only 'detection' has anchors"):
        anchors.fit(default_config("segmentation"), num_anchors=3)
