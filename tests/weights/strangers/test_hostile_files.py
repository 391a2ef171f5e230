"""Files of weights by somebody who means harm, or cut and damaged: nothing runs, one error, nothing outside is read."""

import io
import json
import os
import pathlib
import pickle
import resource
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from flax_mnv2 import CheckpointError, MobileNetV2Config, convert, from_pretrained, from_state_dict
from flax_mnv2.predict import command as predict
from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.weights import tensor_files

ROOT = pathlib.Path(__file__).resolve().parents[3]


class _Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (os.system, (f"touch '{self.canary}'",))


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


def _zip(pickled, **entries):
    """What torch.save writes, with that pickle."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little", **entries}.items():
            archive.writestr(f"archive/{name}", data)
    return content.getvalue()


def _torch_saved(torch, content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _script_archive(torch):
    module = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    return buffer.getvalue()


TRAPS = {
    "pickle, protocol 0": lambda torch, trap: pickle.dumps(trap, 0),
    "pickle, protocol 2": lambda torch, trap: pickle.dumps({"w": trap}, 2),
    "pickle, protocol 5": lambda torch, trap: pickle.dumps({"state_dict": {"w": trap}}, 5),
    "zip": lambda torch, trap: _torch_saved(torch, {"w": torch.zeros(2), "x": trap}),
    "legacy": lambda torch, trap: _torch_saved(torch, {"w": trap}, _use_new_zipfile_serialization=False),
    "zip of a plain pickle": lambda torch, trap: _zip(pickle.dumps(trap, 4)),
    "npz": lambda torch, trap: _npz(trap),
    "npy": lambda torch, trap: _npy(trap),
}


def _npz(trap):
    buffer = io.BytesIO()
    np.savez(buffer, w=np.array([trap], object))
    return buffer.getvalue()


def _npy(trap):
    buffer = io.BytesIO()
    np.save(buffer, np.array([trap], object))
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors", ".npz", ".npy"])
@pytest.mark.parametrize("form", TRAPS)
def test_no_trap_is_sprung(tmp_path, torch, canary, form, suffix):
    content = TRAPS[form](torch, _Trap(canary))
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        tensor_files.read_tensor_file(path)
    assert str(path) in str(caught.value)
    assert not canary.exists()


def test_the_trap_is_a_trap(canary):
    pickle.loads(pickle.dumps(_Trap(canary)))
    assert canary.exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's, of making such a file
def test_compiled_modules_are_refused(tmp_path, torch):
    (tmp_path / "module.pt").write_bytes(_script_archive(torch))
    with pytest.raises(CheckpointError, match=r"Cannot read .*module\.pt as plain weights"):
        tensor_files.read_tensor_file(tmp_path / "module.pt")


def _trapped_folder(folder, torch, canary, weights):
    """A folder that looks like a model, with a trap for weights."""
    folder.mkdir()
    values = MobileNetV2Config(num_labels=2).to_dict() | {"architectures": ["MobileNetV2ForImageClassification"]}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "preprocessor_config.json").write_text("{}")
    content = _torch_saved(torch, {"w": _Trap(canary)})
    if weights == "index":
        (folder / "pytorch_model-1.bin").write_bytes(content)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": "pytorch_model-1.bin"}}))
    else:
        (folder / weights).write_bytes(content)


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "index", "model.safetensors"])
def test_every_command_ends_with_one_error(tmp_path, torch, canary, capsys, weights):
    from PIL import Image

    from flax_mnv2.training.initial_weights import initial_weights

    folder = tmp_path / "model"
    _trapped_folder(folder, torch, canary, weights)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (40, 40)).save(photo)

    assert convert.main([str(folder), str(tmp_path / "converted")]) == 2
    assert predict.main([str(photo), "--model", str(folder)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2, errors
    assert all(line.startswith("error: Cannot read ") for line in errors)
    assert not (tmp_path / "converted").exists()

    with pytest.raises(CheckpointError, match="Cannot read"):  # what eval.py --pretrained calls
        from_pretrained(folder, task="classification")
    config = default_config()
    config.init_from = str(folder)
    for scope in ("backbone", "all"):  # what train.py --config.init_from calls
        config.init_scope = scope
        with pytest.raises(CheckpointError, match="Cannot read"):
            initial_weights(config, None, {"params": {}})
    assert not canary.exists()


# ------------------------------------------------------------------------------------- PyTorch's files


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's, of making such tensors
def test_tensors_that_are_no_plain_arrays_are_refused(tmp_path, torch):
    kinds = {
        "sparse": torch.zeros(3, 3).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
        "meta": torch.zeros(3, device="meta"),
        "conjugate": torch.zeros(3, dtype=torch.complex64).conj(),
        "float8": torch.zeros(3).to(torch.float8_e5m2),
    }
    for name, tensor in kinds.items():
        torch.save({"w": tensor}, tmp_path / f"{name}.pth")
        with pytest.raises(CheckpointError):
            tensor_files.read_tensor_file(tmp_path / f"{name}.pth")


def test_what_training_scripts_save_is_still_read(tmp_path, torch):
    """Optimizers, schedulers and parameters name no more than what is allowed."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    content = {"epoch": 1, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    content |= {"schedule": schedule.state_dict(), "rng": torch.get_rng_state(), "parameter": model.weight}
    for zipped in (True, False):
        torch.save(content, tmp_path / "last.pth", _use_new_zipfile_serialization=zipped)
        found = tensor_files.read_tensor_file(tmp_path / "last.pth")
        np.testing.assert_array_equal(found.state["weight"], model.weight.detach().numpy())


# --------------------------------------------------------------------------------------- safetensors


def _safetensors(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def _entry(shape=(1,), place=(0, 4), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(place)}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"w": _entry((2**40,), (0, 2**42))}, b""),
        ({"w": _entry((2**32, 2**32, 2**32), (0, 0))}, b""),
        ({"w": _entry((2**31, 2**31, 4), (0, 0))}, b""),
        ({"w": _entry((2**64,), (0, 4))}, bytes(4)),
        ({"w": _entry((-1, -1), (0, 4))}, bytes(4)),
        ({"w": _entry((1.0,), (0, 4))}, bytes(4)),
        ({"w": _entry((True,), (0, 4))}, bytes(4)),
        ({"w": _entry((1,) * 70, (0, 4))}, bytes(4)),
        ({"w": _entry(place=(4, 0))}, bytes(4)),
        ({"w": _entry(place=(0, 4, 8))}, bytes(4)),
        ({"a": _entry(), "b": _entry()}, bytes(4)),
        ({"a": _entry(place=(4, 8))}, bytes(8)),
        ({"a": _entry()}, bytes(8)),
        ({"a": {"dtype": "F32"}}, bytes(4)),
        ({"a": 3}, bytes(4)),
        ([1], b""),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {}}', bytes(4)),
        (b"[" * 100_000, b""),
        (b'{"a": ' + b"9" * 5000 + b"}", b""),
        (b"\xff\xfe{}", b""),
        ({"a": _entry(dtype=["F32"])}, bytes(4)),
    ],
)
def test_headers_are_held_against_the_file(tmp_path, header, data):
    with pytest.raises(CheckpointError, match=r"Cannot read .*damaged or incomplete") as caught:
        tensor_files.read_tensor_file(_safetensors(tmp_path / "w.safetensors", header, data))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("length", [0, 1, 2**30, 2**63, 2**64 - 1])
def test_the_length_of_a_header_is_held_against_the_file(tmp_path, length):
    with pytest.raises(CheckpointError, match="Cannot read"):
        tensor_files.read_tensor_file(_safetensors(tmp_path / "w.safetensors", {}, length=length))


def test_a_hole_on_disk_is_no_weight(tmp_path):
    """A file of a terabyte takes no space on disk where nothing was written."""
    path = _safetensors(tmp_path / "w.safetensors", {"w": _entry((2**38,), (0, 2**40))})
    for suffix in ("safetensors", "pth"):
        target = path.with_suffix(f".{suffix}")
        target.touch()
        os.truncate(target, 2**40)
        with pytest.raises(CheckpointError, match="may have at most"):
            tensor_files.read_tensor_file(target)


def test_pipes_and_folders_are_no_weights(tmp_path):
    os.mkfifo(tmp_path / "w.safetensors")
    os.mkfifo(tmp_path / "w.pth")
    (tmp_path / "x.bin").mkdir()
    for name in ("w.safetensors", "w.pth", "x.bin"):
        with pytest.raises(CheckpointError, match="no regular file"):
            tensor_files.read_tensor_file(tmp_path / name)


def test_empty_and_odd_tensors_that_are_right_are_read(tmp_path):
    state = {"empty": np.zeros((0, 3), np.float32), "scalar": np.array(3, np.float32), "b": np.ones(2, np.float16)}
    save_file(state, tmp_path / "w.safetensors", metadata={"format": "pt", "note": "x" * 5000})
    found = tensor_files.read_tensor_file(tmp_path / "w.safetensors").state
    assert {name: array.shape for name, array in found.items()} == {"empty": (0, 3), "scalar": (), "b": (2,)}


@pytest.mark.parametrize("name", ["a" * 5000 + ".safetensors", "\x00.safetensors", "no.safetensors"])
def test_shards_with_impossible_names_are_named_short(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(CheckpointError, match="is not there") as caught:
        tensor_files.read_weights(tmp_path)
    assert len(str(caught.value)) < 600


def test_nothing_is_allocated_that_a_state_dict_merely_claims():
    """A view that repeats one value, under a name and for a config that exist."""
    state = {"features.0.0.weight": np.broadcast_to(np.float32(0), (10**5, 3, 10**5, 3))}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError):
        from_state_dict(state)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
