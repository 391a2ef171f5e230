"""Files of tensors: every form that is read, every one that is refused, and that nothing in them runs."""

import json
import os
import pickle
import stat

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flax_mnv2 import CheckpointError
from flax_mnv2.files import write_text
from flax_mnv2.weights import tensor_files
from flax_mnv2.weights.tensors import to_float32

STATE = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.ones(2, np.float32)}


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def _tensors(torch):
    return {key: torch.from_numpy(value.copy()) for key, value in STATE.items()}


def _same(state):
    assert state.keys() == STATE.keys()
    for key, value in STATE.items():
        np.testing.assert_array_equal(state[key], value, strict=True)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_what_is_written_is_read(tmp_path, suffix):
    if suffix != ".safetensors":
        pytest.importorskip("torch")
    path = tmp_path / f"weights{suffix}"
    tensor_files.write_tensor_file(path, STATE | {"n": np.asarray(7, np.int64)})
    found = tensor_files.read_tensor_file(path)
    assert found.state.pop("n") == 7
    _same(found.state)
    assert found.notes == ()
    assert [each.name for each in tmp_path.iterdir()] == [path.name], "no temporary file is left"


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    tensor_files.write_tensor_file(path, STATE)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tensor_files.write_tensor_file(path, {"b": np.zeros(1, np.float32)})
    _same(load_file(path))
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_weights_inside_a_training_checkpoint_are_taken_out(tmp_path, torch, key):
    torch.save({"epoch": 3, key: _tensors(torch), "optimizer": {"lr": 0.1}}, tmp_path / "last.pth")
    found = tensor_files.read_tensor_file(tmp_path / "last.pth")
    _same(found.state)
    assert found.notes == (f"took the weights from '{key}' in the file",)


@pytest.mark.parametrize("prefix", ["module.", "net.backbone.", "a."])
def test_prefixes_that_all_names_share_are_dropped(prefix):
    found = tensor_files.TensorFile({f"{prefix}{key}": value for key, value in STATE.items()})
    _same(found.unwrapped(lambda names: "a.bias" in names).state)
    assert [note.split("'")[1] for note in found.unwrapped(lambda names: "a.bias" in names).notes] == [
        f"{part}." for part in prefix.split(".")[:-1]
    ]
    assert found.unwrapped(lambda names: False) is found
    mixed = tensor_files.TensorFile({**found.state, "loss.weight": np.zeros(1, np.float32)})
    assert mixed.unwrapped(lambda names: "a.bias" in names) is mixed


def test_the_count_of_averaged_models_is_left_out():
    found = tensor_files.TensorFile({"n_averaged": np.asarray(3), **{f"module.{key}": STATE[key] for key in STATE}})
    _same(found.unwrapped(lambda names: "a.bias" in names).state)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_half_precision_keeps_its_type_and_widens_exactly(tmp_path, suffix, kind):
    dtype = np.dtype(np.float16 if kind == "float16" else ml_dtypes.bfloat16)
    # Over each type's whole range: bfloat16 reaches where float16 does not, and float16 has the finer steps.
    powers = 2.0 ** np.linspace(*((-14, 15) if kind == "float16" else (-120, 120)), 50)
    values = (np.random.default_rng(0).uniform(1, 2, size=50) * powers).astype(dtype)
    assert np.isfinite(values.astype(np.float32)).all()
    if suffix == ".pth":
        torch = pytest.importorskip("torch")
        torch.save({"w": torch.from_numpy(values.astype(np.float32)).to(getattr(torch, kind))}, tmp_path / "w.pth")
    else:
        save_file({"w": values}, tmp_path / "w.safetensors")
    found = tensor_files.read_tensor_file(tmp_path / f"w{suffix}").state["w"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(to_float32("w", found), values.astype(np.float32), strict=True)
    np.testing.assert_array_equal(to_float32("w", found).astype(dtype), values)


@pytest.mark.parametrize("dtype", [np.longdouble, np.int32, np.int64, bool])
def test_types_that_would_lose_are_refused(dtype):
    with pytest.raises(CheckpointError, match=rf"Tensor w is {np.dtype(dtype).name}; weights must be float32"):
        to_float32("w", np.ones(3, dtype))


class _Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("wrap", [lambda trap: trap, lambda trap: {"state_dict": {"w": trap}}, lambda trap: [trap]])
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_nothing_in_a_pickle_runs(tmp_path, torch, wrap, form):
    sprung, path = tmp_path / "sprung", tmp_path / "model.pth"
    if form == "torch":
        torch.save(wrap(_Trap(sprung)), path)
    else:
        path.write_bytes(pickle.dumps(wrap(_Trap(sprung)), protocol=2))
    with pytest.raises(CheckpointError, match="never executed"):
        tensor_files.read_tensor_file(path)
    assert not sprung.exists()


def test_what_is_no_state_dict_is_refused(tmp_path, torch):
    for index, content in enumerate(([torch.zeros(2)], {"w": 3}, {"state_dict": {"w": "x"}}, {0: torch.zeros(1)})):
        torch.save(content, tmp_path / f"{index}.pth")
        with pytest.raises(CheckpointError, match=r"is not a state dict .* save model.state_dict"):
            tensor_files.read_tensor_file(tmp_path / f"{index}.pth")


def test_other_suffixes_and_damage_are_named(tmp_path):
    (tmp_path / "weights.txt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"ends in \.txt; expected a file of weights"):
        tensor_files.read_tensor_file(tmp_path / "weights.txt")
    for content in (b"", b"\xff" * 100, b"\x00" * 100):
        (tmp_path / "w.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"Cannot read .*w\.safetensors.*damaged"):
            tensor_files.read_tensor_file(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("kind", "bits"), [("F8_E4M3", 8), ("F8_E5M2", 8), ("F8_E8M0", 8), ("F6_E2M3", 6), ("F6_E3M2", 6), ("F4", 4)]
)
def test_types_that_numpy_does_not_have_are_refused(tmp_path, kind, bits):
    header = json.dumps({"w": {"dtype": kind, "shape": [8], "data_offsets": [0, bits]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(bits))
    with pytest.raises(CheckpointError, match="a type that NumPy does not have: convert it to float32"):
        tensor_files.read_tensor_file(tmp_path / "w.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_permissions_of_new_files(tmp_path, suffix, umask, mode):
    if suffix != ".safetensors":
        pytest.importorskip("torch")
    before = os.umask(umask)
    try:
        tensor_files.write_tensor_file(tmp_path / f"w{suffix}", STATE)
        write_text(tmp_path / "config.json", "{}")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {mode}


def _shard(folder, stem="model", suffix=".safetensors"):
    """The two tensors in two files, and their index."""
    names = [f"{stem}-0000{number}-of-00002{suffix}" for number in (1, 2)]
    for name, key in zip(names, STATE, strict=True):
        tensor_files.write_tensor_file(folder / name, {key: STATE[key]})
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict(zip(STATE, names, strict=True))}))
    return index, names


@pytest.mark.parametrize(("stem", "suffix"), [("model", ".safetensors"), ("pytorch_model", ".bin")])
def test_shards_are_put_together(tmp_path, stem, suffix):
    if suffix == ".bin":
        pytest.importorskip("torch")
    _shard(tmp_path, stem, suffix)
    _same(tensor_files.read_weights(tmp_path).state)


def test_a_tensor_in_two_shards_is_that_of_the_index(tmp_path):
    _, names = _shard(tmp_path)
    first, second = STATE
    stale = {first: np.zeros_like(STATE[first]), second: STATE[second]}
    tensor_files.write_tensor_file(tmp_path / names[1], stale)
    _same(tensor_files.read_weights(tmp_path).state)


def test_safetensors_go_first(tmp_path, torch):
    torch.save({"other": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert list(tensor_files.read_weights(tmp_path).state) == ["other"]
    _shard(tmp_path)
    _same(tensor_files.read_weights(tmp_path).state)
    tensor_files.write_tensor_file(tmp_path / "model.safetensors", {"whole": np.zeros(1, np.float32)})
    assert list(tensor_files.read_weights(tmp_path).state) == ["whole"]


def test_a_missing_shard_is_named(tmp_path):
    _, names = _shard(tmp_path)
    (tmp_path / names[1]).unlink()
    with pytest.raises(CheckpointError, match=f"names the shard '{names[1]}', which is not there"):
        tensor_files.read_weights(tmp_path)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "a\\b.safetensors", "x.bin", ".."]
)
def test_a_shard_stays_in_its_folder(tmp_path, name):
    index, _ = _shard(tmp_path)
    save_file(STATE, tmp_path.parent / "x.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(STATE, name)}))
    with pytest.raises(CheckpointError, match="must be a plain file name"):
        tensor_files.read_weights(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', "\x00"])
def test_a_damaged_index_is_named(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"Cannot read .*index\.json"):
        tensor_files.read_weights(tmp_path)
