"""State dicts and files of tensors that were tampered with: the model's tensors, or a UserError.

The cases follow from a seed in the code.
"""

import io
import json
import resource

import hypothesis
import numpy as np
import pytest
from fuzzing import cases
from hypothesis import strategies as st
from safetensors.numpy import save

from flax_mnv2 import MobileNetV2Config, UserError, from_state_dict
from flax_mnv2.config.deeplab import PRESETS
from flax_mnv2.weights import tensor_files
from flax_mnv2.weights.formats import FORMATS, hugging_face
from flax_mnv2.weights.source import make_model, variable_shapes
from flax_mnv2.weights.tensors import write_state

MAX_GROWTH_KIB = 400_000
HF = MobileNetV2Config(num_labels=3)


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _state(library):
    """A valid state dict of a tiny network, and the config that goes with it, if one does."""
    config, naming, task = HF, hugging_face.NAMING, "classification"
    if library in PRESETS:
        config, task = FORMATS[library].nearest(HF.replace(deeplab=library)).replace(num_labels=3), "segmentation"
        naming = FORMATS[library].naming(config)
    elif library != "hf":
        config = MobileNetV2Config(num_labels=3, round_widths=False, stem_residual=True)
        naming = FORMATS[library].naming(config)
    shapes = variable_shapes(make_model(config, task))
    state = write_state({path: np.ones(shape, np.float32) for path, shape in shapes.items()}, naming)
    return state, (HF if library == "hf" else None)


def _odd(array):
    """What may stand in the place of ``array``."""
    other = np.zeros(0) if array.size == 0 else array
    return {
        "scalar": np.float32(1),
        "number": 3,
        "nothing": None,
        "text": "x",
        "bytes": b"\x80\x02.",
        "object": np.array([object()], object),
        "ragged": [[1.0], [2.0, 3.0]],
        "list": [1.0, 2.0],
        "empty": array[:0],
        "other rank": array[None],
        "flat": array.reshape(-1),
        "turned": array.T,
        "nan": np.full_like(array, np.nan),
        "infinite": np.full_like(array, np.inf),
        "half": array.astype(np.float16),
        "double": array.astype(np.float64),
        "complex": array.astype(np.complex64),
        "bool": array.astype(bool),
        "int8": array.astype(np.int8),
        "big endian": array.astype(">f4"),
        "dates": np.zeros(array.shape, "M8[s]"),
        "records": np.zeros(array.shape, [("a", "f4")]),
        "words": np.zeros(array.shape, "U8"),
        "strided": np.repeat(other, 2, axis=-1)[..., ::2],
        "huge": np.broadcast_to(np.float32(0), (10**6, 10**6)),
        "huge, right rank": np.broadcast_to(np.float32(0), (10**3,) * array.ndim if array.ndim > 1 else (10**12,)),
        "wider": np.zeros(tuple(side + 8 for side in array.shape), np.float32),
        "read only": np.broadcast_to(np.float32(1), array.shape),
    }


ODD_NAMES = sorted(_odd(np.ones((2, 2), np.float32)))
KEYS = ["", "x", "module.", "classifier.weight", "classifier", "num_batches_tracked", "a" * 10_000, "\x00", "\ud800",
        "mobilenet_v2.", "features.", "blocks.", "blocks.0.0.conv_dw.weight", "features.99999.0.weight",
        "mobilenet_v2.layer.99.conv_3x3.convolution.weight", "params/x", 3, None, ("a",)]  # fmt: skip
changes = st.lists(
    st.tuples(
        st.sampled_from(["delete", "rename", "replace", "replace", "add"]),
        st.integers(0, 400),
        st.sampled_from(ODD_NAMES),
        st.sampled_from(KEYS),
    ),
    max_size=3,
)


@pytest.mark.parametrize(
    ("library", "count"),
    [("hf", 1000), ("torchvision", 500), ("timm", 500), ("vainf", 60), ("smp", 60), ("mmseg", 60)],
)
def test_state_dicts(tiny_blocks, library, count):
    whole, config = _state(library)
    outcomes, settings = [], cases(count)
    before = _peak()

    @settings
    @hypothesis.given(changes)
    def fuzz(edits):
        state = dict(whole)
        for kind, index, odd, key in edits:
            name = list(state)[index % len(state)]
            if kind == "delete" and len(state) > 1:
                del state[name]
            elif kind == "rename":
                state[key] = state.pop(name)
            elif kind == "replace":
                state[name] = _odd(np.asarray(whole.get(name, np.ones(2, np.float32))))[odd]
            else:
                state[key] = np.ones(2, np.float32)
        try:
            _, variables = from_state_dict(state, config=config, task=None if library in PRESETS else "classification")
        except UserError:
            outcomes.append(False)
            return
        assert set(variables) == {"params", "batch_stats"}
        outcomes.append(True)

    fuzz()
    assert 0 < sum(outcomes) < len(outcomes)
    assert len(outcomes) >= 0.9 * settings.max_examples
    assert _peak() - before < MAX_GROWTH_KIB


# ----------------------------------------------------------------------------------------------- files

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.ones(2, np.float16),
    "n": np.array(7, np.int64),
}
byte_edits = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "insert", "end"]),
        st.integers(0, 4000),
        st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, bytes(8), b"9" * 20, b"[", b'"', b"-1"]),
    ),
    min_size=1,
    max_size=3,
)


def _edited(content, edits):
    for kind, start, piece in edits:
        start %= len(content) + 1
        if kind == "set":
            content = content[:start] + piece + content[start + len(piece) :]
        elif kind == "cut":
            content = content[:start] + content[start + len(piece) :]
        elif kind == "insert":
            content = content[:start] + piece + content[start:]
        else:
            content = content[:start]
    return content


def _fuzz_file(path, contents, count):
    outcomes, settings = [], cases(count)
    before = _peak()

    @settings
    @hypothesis.given(st.sampled_from(contents), byte_edits)
    def fuzz(content, edits):
        path.write_bytes(_edited(content, edits))
        state, message = {}, ""
        try:
            state = tensor_files.read_tensor_file(path).state
        except UserError as error:
            message = str(error)
        assert len(message) < 1500
        outcomes.append(not message)
        assert sum(array.nbytes for array in state.values()) <= path.stat().st_size

    fuzz()
    assert 0 < sum(outcomes) < len(outcomes)
    assert len(outcomes) >= 0.9 * settings.max_examples
    assert _peak() - before < MAX_GROWTH_KIB


def test_safetensors_with_bytes_changed(tmp_path):
    _fuzz_file(tmp_path / "w.safetensors", [save(TENSORS)], 2000)


entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "F4", "F6_E2M3", "F8_E4M3", "BOOL", "C64", "", None, 3]),
        "shape": st.lists(st.sampled_from([0, 1, 2, 3, 2**31, 2**63, -1, 1.0, True]), max_size=4) | st.none(),
        "data_offsets": st.lists(st.sampled_from([0, 4, 8, 24, 2**40, -4, 4.0]), max_size=3) | st.none(),
        "x": st.none(),
    },
)
headers = st.dictionaries(st.sampled_from(["a", "b", "__metadata__", "", "\x00"]), entries | st.none(), max_size=3)


def test_safetensors_with_any_header(tmp_path):
    path, outcomes = tmp_path / "w.safetensors", []

    @cases(1000)
    @hypothesis.given(headers, st.sampled_from([0, 4, 8, 24]))
    def fuzz(header, length):
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(length))
        try:
            tensor_files.read_tensor_file(path)
            outcomes.append(True)
        except UserError:
            outcomes.append(False)

    fuzz()
    assert 0 < sum(outcomes) < len(outcomes)


def test_torch_files_with_bytes_changed(tmp_path):
    torch = pytest.importorskip("torch")
    contents = []
    for zipped in (True, False):
        buffer = io.BytesIO()
        tensors = {name: torch.from_numpy(array.copy()) for name, array in TENSORS.items()}
        torch.save(tensors, buffer, _use_new_zipfile_serialization=zipped)
        contents.append(buffer.getvalue())
    _fuzz_file(tmp_path / "w.pth", contents, 500)
