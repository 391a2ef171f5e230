"""A run with atrous branches and a decoder: it learns, is known again, is loaded and predicts."""

import json

import numpy as np
import predicting
import pytest
from harness import compiling_once

from flax_mnv2 import ConfigError, from_pretrained
from flax_mnv2.config.deeplab import DeepLabSpec
from flax_mnv2.training.config.defaults import check_same_run
from flax_mnv2.training.logging.metrics_writer import read_metrics
from flax_mnv2.training.loop import train
from flax_mnv2.training.optimizer import decay_mask

HEAD = {"atrous_rates": (2,), "channels": 16, "low_level": "layer_00/depthwise", "decoder_convs": 1}


def test_a_run_of_deeplab_v3plus(tiny_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", ((8, 1, 2), (16, 1, 2)))
    run, section = tmp_path / "run", tiny_config.model.deeplab
    section.update(preset="deeplab_v3plus", **HEAD)
    tiny_config.num_steps, tiny_config.log_every_steps = 12, 1
    tiny_config.eval_every_steps = tiny_config.checkpoint.every_steps = 12
    train(tiny_config, run, parallel=compiling_once(tiny_config))
    losses = [line["loss"] for line in read_metrics(run) if line["split"] == "train"]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])

    stored = json.loads((run / "config.json").read_text())
    check_same_run(tiny_config, stored, str(run))
    section.align_corners = False
    with pytest.raises(ConfigError, match=r"model\.deeplab\.align_corners: None there, False now"):
        check_same_run(tiny_config, stored, str(run))

    checkpoint = run / "checkpoints" / "step_12"
    model, variables = from_pretrained(checkpoint)
    assert model.config.deeplab == DeepLabSpec(**HEAD)
    assert {"conv_atrous_1", "conv_low_level", "conv_decoder_0"} <= variables["params"]["segmentation_head"].keys()
    decayed = decay_mask(variables["params"]["segmentation_head"]["conv_decoder_0"], tiny_config.optimizer)
    assert decayed == {
        "conv_3x3": {"convolution": {"kernel": False}, "normalization": {"bias": False, "scale": False}},
        "reduce_1x1": {"convolution": {"kernel": True}, "normalization": {"bias": False, "scale": False}},
    }
    photo = predicting.write(tmp_path / "a.png")
    status, out, err = predicting.run(capsys, photo, "--model", checkpoint, "--output", tmp_path / "out")
    assert (status, err) == (0, "")
    assert "mask:" in out
