"""Configs as somebody who means harm would write them: a config that can be written back, or a UserError.

The cases follow from a seed in the code.
"""

import contextlib
import json

import hypothesis
import pytest
from fuzzing import CHARACTERS, cases
from hypothesis import strategies as st

from flax_mnv2 import MobileNetV2Config, MobileNetV2ImageProcessor, UserError
from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.training.workdir import config_for_evaluation
from flax_mnv2.weights.opening import open_weights

FIELDS = [*MobileNetV2Config().to_dict(), "num_labels", "batch_norm_momentum", "pool_window", "layer_depth_multiplier",
          "problem_type", "extra", "architectures", "architecture", "size", "crop_size", "image_mean", "resample",
          "pretrained_cfg", "label_names", "x"]  # fmt: skip


pytestmark = pytest.mark.filterwarnings("ignore:output_stride")


def _nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


ODD = [0, 1, -1, 2, 7, 8, 16, 31, 64, 65536, 10**6, 10**9, 2**63, 10**400, 10**5000, -(10**400), True, False, None,
       0.0, -0.0, 0.5, 1.0, 16.0, 1e-320, 1e6, 1e308, float("nan"), float("inf"), -float("inf"), "", "224", "relu6",
       "a" * 10_000, "\x00", "\ud800", [], [224, 224], [0, 0], [1, 2, 3], {}, {"0": "a"}, {"0": "a", "1": "b"},
       {"0": "a", "00": "b"}, {"1_0": "a"}, {"-1": "a"}, {"9" * 5000: "a"}, {"a": 0}, {"shortest_edge": 10**9},
       _nested(31), _nested(40), _nested(900)]  # fmt: skip
odd = st.integers(0, len(ODD) - 1).map(
    lambda index: ODD[index]
)  # some of them cannot be printed, which sampled_from does
values = st.recursive(
    odd | st.integers() | st.floats() | st.text(CHARACTERS, max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(CHARACTERS, max_size=3), inner, max_size=3),
    max_leaves=5,
)
configs = st.dictionaries(st.sampled_from(FIELDS), values, min_size=1, max_size=4) | values


def _check(values):
    """A config, or a UserError with a message that can be read; then what a config promises."""
    config, message = None, ""
    try:
        config = MobileNetV2Config.from_dict(values)
    except UserError as error:
        message = str(error)
    assert len(message) < 2000
    if config is None:
        return False
    hash(config)
    again = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    assert MobileNetV2Config.from_dict(again) == config
    return True


def test_values_of_every_kind():
    accepted, settings = [], cases(2000)

    @settings
    @hypothesis.given(configs)
    def fuzz(values):
        accepted.append(_check(values))
        with contextlib.suppress(UserError):
            MobileNetV2ImageProcessor.from_dict(values)

    fuzz()
    assert len(accepted) >= settings.max_examples // 2  # hypothesis leaves out what repeats
    assert 0 < sum(accepted) < len(accepted)


SOURCES = [
    json.dumps(MobileNetV2Config(num_labels=3).to_dict()).encode(),
    json.dumps({"architecture": "mobilenetv2_100", "num_classes": 3, "label_names": ["a", "b", "c"]}).encode(),
    b'{"weight_map": {"a": "b.safetensors"}}',
    json.dumps(default_config().to_dict()).encode(),
]  # fmt: skip
pieces = st.sampled_from([b"", b"[", b"{", b'"', b"}", b",", b"9" * 30, b"-", b"NaN", b"1e999", b"\xff", b"\x00",
                          b"null", b"[" * 3000, b'"a":' * 5, b"true", b"\\ud800"])  # fmt: skip
edits = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 30), pieces), min_size=1, max_size=3)


def test_text_of_every_kind(tmp_path):
    counted, settings = [], cases(2000)

    def read_run():
        config_for_evaluation(None, {}, workdir=str(tmp_path))

    readers = (
        lambda: MobileNetV2Config.from_json_file(tmp_path / "config.json"),
        lambda: MobileNetV2ImageProcessor.from_pretrained(tmp_path),
        lambda: open_weights(tmp_path),
    )

    @settings
    @hypothesis.given(st.sampled_from(SOURCES), edits)
    def fuzz(text, changes):
        of_run = text == SOURCES[-1]
        for start, length, piece in changes:
            start %= len(text) + 1
            text = text[:start] + piece + text[start + length :]
        for name in ("config.json", "preprocessor_config.json", "model.safetensors.index.json"):
            (tmp_path / name).write_bytes(text)
        for read in (read_run,) if of_run else readers:
            message = ""
            try:
                read()
            except UserError as error:
                message = str(error)
            assert len(message) < 3000
        counted.append(text)

    fuzz()
    assert len(set(counted)) >= 0.9 * settings.max_examples


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_with_every_odd_value(name):
    accepted = [_check({name: value}) for value in ODD]
    assert not all(accepted)
