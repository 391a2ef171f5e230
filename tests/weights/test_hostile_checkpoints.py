"""Files of weights by somebody who means harm: nothing runs, nothing outside is read, memory stays bounded."""

import io
import json
import os
import pathlib
import pickle
import resource
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from flax_mnv2 import CheckpointError, MobileNetV2Config, from_pretrained, from_state_dict
from flax_mnv2.checkpoint import flax_folder
from flax_mnv2.predict import command as predict
from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.weights import command as convert
from flax_mnv2.weights import files, pickle_scan, safetensors_file

ROOT = pathlib.Path(__file__).resolve().parents[2]


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
        files.read_tensor_file(path)
    assert str(path) in str(caught.value)
    assert not canary.exists()


def test_the_trap_is_a_trap(canary):
    pickle.loads(pickle.dumps(_Trap(canary)))
    assert canary.exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's, of making such a file
def test_compiled_modules_are_refused(tmp_path, torch):
    (tmp_path / "module.pt").write_bytes(_script_archive(torch))
    with pytest.raises(CheckpointError, match=r"Cannot read .*module\.pt as plain weights"):
        files.read_tensor_file(tmp_path / "module.pt")


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

    from flax_mnv2.training.initial_weights import initial_variables, origin_notes

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
            initial_variables(config, None, {"params": {}})
    with pytest.raises(CheckpointError, match="Cannot read"):
        origin_notes(config)
    assert not canary.exists()


# ------------------------------------------------------------------------------ more than there is


def _global(name, *arguments):
    """A pickle that calls ``name``; protocol 2."""
    parts = b"".join(b"\x8a\x08" + struct.pack("<q", argument) for argument in arguments)
    return b"\x80\x02}X\x01\x00\x00\x00wc" + name.replace(" ", "\n").encode() + b"\n(" + parts + b"tRs."


@pytest.mark.parametrize(
    "name",
    [
        "__builtin__ bytearray",
        "builtins bytearray",
        "torch FloatTensor",
        "_codecs encode",
        "torch._utils _rebuild_qtensor",
    ],
)
@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_constructors_that_take_a_size_are_refused(tmp_path, torch, name, layout):
    """``bytearray`` is on PyTorch's own list of what is harmless."""
    pickled = _global(name, 2**40)
    if layout == "legacy":
        pickled = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})) + pickled
    (tmp_path / "w.pth").write_bytes(_zip(pickled) if layout == "zip" else pickled)
    with pytest.raises(CheckpointError, match=f"names {name.replace(' ', '.')}".replace(".", r"\.")):
        files.read_tensor_file(tmp_path / "w.pth")


def test_names_put_together_while_unpickling_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(_zip(pickle.dumps({"w": bytearray}, 4)))
    with pytest.raises(pickle_scan.UnsafePickleError, match="STACK_GLOBAL"):
        pickle_scan.check_torch_file(path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_value_repeated_by_a_stride_of_zero_is_refused(tmp_path, torch, dtype, zipped):
    wide = torch.zeros(1, dtype=getattr(torch, dtype)).as_strided((10**6, 10**6), (0, 0))
    torch.save({"w": wide}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert (tmp_path / "w.pth").stat().st_size < 5000
    with pytest.raises(CheckpointError, match=r"would have [24],000,000,000,000"):
        files.read_tensor_file(tmp_path / "w.pth")


def test_a_compressed_archive_is_refused(tmp_path, torch):
    content = io.BytesIO(_torch_saved(torch, {"w": torch.zeros(4)}))
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(content) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, bytes(10**8) if name.endswith("data/0") else source.read(name))
    assert path.stat().st_size < 200_000
    with pytest.raises(CheckpointError, match="compressed entries"):
        files.read_tensor_file(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_storage_that_claims_more_than_the_file_has_is_refused(tmp_path, torch, zipped):
    content = _torch_saved(torch, {"w": torch.arange(77.0)}, _use_new_zipfile_serialization=zipped)
    claimed = content.replace(b"K\x4d", b"\x8a\x08" + struct.pack("<q", 2**50))
    assert claimed.count(b"\x8a\x08") >= 2
    if zipped:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            pickled = archive.read("archive/data.pkl").replace(b"K\x4d", b"\x8a\x08" + struct.pack("<q", 2**50))
        claimed = _zip(pickled, **{"data/0": np.arange(77.0, dtype=np.float32).tobytes()})
    (tmp_path / "w.pth").write_bytes(claimed)
    with pytest.raises(CheckpointError, match="Cannot read"):
        files.read_tensor_file(tmp_path / "w.pth")


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
            files.read_tensor_file(tmp_path / f"{name}.pth")


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
        found = files.read_tensor_file(tmp_path / "last.pth")
        np.testing.assert_array_equal(found.state["weight"], model.weight.detach().numpy())


# --------------------------------------------------------------------------------------- safetensors


def _safetensors(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def _entry(shape=(1,), place=(0, 4), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(place)}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"w": _entry((2**40,), (0, 2**42))}, b"", "its tensors need"),
        ({"w": _entry((2**32, 2**32, 2**32), (0, 0))}, b"", "has 0 bytes"),
        ({"w": _entry((2**31, 2**31, 4), (0, 0))}, b"", "has 0 bytes"),
        ({"w": _entry((2**64,), (0, 4))}, bytes(4), "has the shape"),
        ({"w": _entry((-1, -1), (0, 4))}, bytes(4), "has the shape"),
        ({"w": _entry((1.0,), (0, 4))}, bytes(4), "has the shape"),
        ({"w": _entry((True,), (0, 4))}, bytes(4), "has the shape"),
        ({"w": _entry((1,) * 40, (0, 4))}, bytes(4), "has the shape"),
        ({"w": _entry(place=(4, 0))}, bytes(4), "has the place"),
        ({"w": _entry(place=(0, 4, 8))}, bytes(4), "has the place"),
        ({"a": _entry(), "b": _entry()}, bytes(4), "overlap"),
        ({"a": _entry(place=(4, 8))}, bytes(8), "gaps"),
        ({"a": _entry()}, bytes(8), "need 4 bytes, and it has 8"),
        ({"a" * 1000: _entry()}, bytes(4), "has 1,000 characters"),
        ({"a": {"dtype": "F32"}}, bytes(4), "for type, shape and place"),
        ({"a": 3}, bytes(4), "for type, shape and place"),
        ([1], b"", "no JSON object"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {}}', bytes(4), "a name twice"),
        (b"[" * 100_000, b"", "nested without end"),
        (b'{"a": ' + b"9" * 5000 + b"}", b"", "Cannot read"),
        (b"\xff\xfe{}", b"", "Cannot read"),
        ({"a": _entry(dtype=["F32"])}, bytes(4), "unsupported type"),
        ({str(index): _entry((0,), (0, 0)) for index in range(20_000)}, b"", "names 20,000 tensors"),
    ],
)
def test_headers_are_held_against_the_file(tmp_path, header, data, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        files.read_tensor_file(_safetensors(tmp_path / "w.safetensors", header, data))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("length", [0, 1, 2**30, 2**63, 2**64 - 1])
def test_the_length_of_a_header_is_bounded(tmp_path, length):
    with pytest.raises(CheckpointError, match="its header should have"):
        files.read_tensor_file(_safetensors(tmp_path / "w.safetensors", {}, length=length))


def test_a_header_of_megabytes_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_file, "MAX_HEADER_BYTES", 1000)
    path = _safetensors(tmp_path / "w.safetensors", {"__metadata__": {"format": "x" * 2000}})
    with pytest.raises(CheckpointError, match="more than 1,000"):
        files.read_tensor_file(path)


def test_a_hole_on_disk_is_no_weight(tmp_path):
    """A file of a terabyte takes no space on disk where nothing was written."""
    path = _safetensors(tmp_path / "w.safetensors", {"w": _entry((2**38,), (0, 2**40))})
    for suffix in ("safetensors", "pth"):
        target = path.with_suffix(f".{suffix}")
        target.touch()
        os.truncate(target, 2**40)
        with pytest.raises(CheckpointError, match="may have at most"):
            files.read_tensor_file(target)


def test_pipes_and_folders_are_no_weights(tmp_path):
    os.mkfifo(tmp_path / "w.safetensors")
    os.mkfifo(tmp_path / "w.pth")
    (tmp_path / "x.bin").mkdir()
    for name in ("w.safetensors", "w.pth", "x.bin"):
        with pytest.raises(CheckpointError, match="no regular file"):
            files.read_tensor_file(tmp_path / name)


def test_empty_and_odd_tensors_that_are_right_are_read(tmp_path):
    state = {"empty": np.zeros((0, 3), np.float32), "scalar": np.array(3, np.float32), "b": np.ones(2, np.float16)}
    save_file(state, tmp_path / "w.safetensors", metadata={"format": "pt", "note": "x" * 5000})
    found = files.read_tensor_file(tmp_path / "w.safetensors").state
    assert {name: array.shape for name, array in found.items()} == {"empty": (0, 3), "scalar": (), "b": (2,)}


def test_shards_are_bounded_together(tmp_path, monkeypatch):
    for index in range(3):
        save_file({f"w{index}": np.zeros(100, np.float32)}, tmp_path / f"{index}.safetensors")
    names = {f"w{index}": f"{index}.safetensors" for index in range(3)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert len(files.read_weights(tmp_path).state) == 3
    monkeypatch.setattr(files, "MAX_WEIGHTS_BYTES", 1000)
    with pytest.raises(CheckpointError, match="shards of more than 1,000 bytes"):
        files.read_weights(tmp_path)


@pytest.mark.parametrize("name", ["a" * 5000 + ".safetensors", "\x00.safetensors", "no.safetensors"])
def test_shards_with_impossible_names_are_named_short(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(CheckpointError, match="is not there") as caught:
        files.read_weights(tmp_path)
    assert len(str(caught.value)) < 600


# --------------------------------------------------------------------------------------------- Orbax


def _orbax(folder):
    """One array as Orbax writes it; zarr files by themselves, so that they can be changed by hand."""
    import orbax.checkpoint as ocp

    path = folder / "variables"
    tree = {"params": {"w": np.zeros((8, 8), np.float32)}}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False)) as checkpointer:
        checkpointer.save(path.absolute(), tree)
    assert flax_folder.read_state(folder)["params/w"].shape == (8, 8)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [10**6, 10**6]}, "would take 4,000,000,000,000 bytes"),
        ({"chunks": [10**6, 10**6]}, "would take 4,000,000,000,000 bytes"),
        ({"shape": [2**62, 2**62]}, "Cannot read"),
        ({"dtype": "|O"}, "Cannot read"),
        ({"compressor": {"id": "pickle"}}, "Cannot read"),
        ({"filters": [{"id": "pickle"}]}, "Cannot read"),
    ],
)
def test_arrays_that_declare_too_much_are_not_read(tmp_path, changes, message):
    note = _orbax(tmp_path) / "params.w" / ".zarray"
    note.write_text(json.dumps(json.loads(note.read_text()) | changes))
    with pytest.raises(CheckpointError, match=message):
        flax_folder.read_state(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "[" * 100_000, '{"tree_metadata": 3}', '{"tree_metadata": {"x": {"key_metadata": 1}}}', "null", '"x"'],
)
def test_a_hostile_note_of_tensors_is_an_error(tmp_path, text):
    (_orbax(tmp_path) / "_METADATA").write_text(text)
    with pytest.raises(CheckpointError, match="Cannot read"):
        flax_folder.read_state(tmp_path)


def test_types_in_the_note_of_tensors_are_looked_up_not_imported(tmp_path):
    """Orbax takes the type by a table; a name that is not there is refused or read as an array, never imported."""
    note = _orbax(tmp_path) / "_METADATA"
    text = note.read_text()
    assert '"np.ndarray"' in text
    note.write_text(text.replace('"np.ndarray"', '"antigravity.open"'))
    try:
        state = flax_folder.read_state(tmp_path)
    except CheckpointError:
        state = {}
    assert "antigravity" not in sys.modules
    assert set(state) <= {"params/w"}


def _crc32c(content):
    value = 0xFFFFFFFF
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def test_a_manifest_does_not_lead_out_of_its_folder(tmp_path):
    """TensorStore's file driver refuses a key with ``..``, which is all that a manifest could say."""
    import tensorstore

    spec = {"driver": "ocdbt", "base": f"file://{tmp_path}/db/"}
    own = {"config": {"compression": None, "max_inline_value_bytes": 0}, "value_data_prefix": "zz/secret"}
    store = tensorstore.KvStore.open(spec | own).result()
    store.write("key", b"x" * 300).result()
    (data,) = (tmp_path / "db" / "zz").iterdir()
    assert tensorstore.KvStore.open(spec).result().read("key").result().value == b"x" * 300
    data.rename(tmp_path / data.name)
    nodes = [path for path in (tmp_path / "db").rglob("*") if path.is_file() and b"zz/secret" in path.read_bytes()]
    assert nodes
    for node in nodes:
        content = node.read_bytes()[:-4]
        assert _crc32c(content) == int.from_bytes(node.read_bytes()[-4:], "little")
        content = content.replace(b"zz/secret", b"../secret")
        node.write_bytes(content + _crc32c(content).to_bytes(4, "little"))
    store = tensorstore.KvStore.open(spec).result()
    assert store.list().result() == [b"key"]
    with pytest.raises(ValueError, match="Invalid key"):
        store.read("key").result()


# -------------------------------------------------------------------------------------------- memory


def test_nothing_is_allocated_that_a_state_dict_merely_claims():
    """A view that repeats one value, under a name and for a config that exist."""
    state = {"features.0.0.weight": np.broadcast_to(np.float32(0), (10**5, 3, 10**5, 3))}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError):
        from_state_dict(state)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_usage_data_is_off_where_nobody_said_so(tmp_path):
    """That no token is passed on either is tested where downloads are."""
    script = (
        "from flax_mnv2 import hub\n"
        "try:\n"
        f"    hub.resolve_folder('owner/name', cache_dir={str(tmp_path)!r}, files=('config.json',))\n"
        "except hub.CheckpointError as error:\n"
        "    assert 'secret' not in str(error)\n"
        "import huggingface_hub.constants as constants\n"
        "assert constants.HF_HUB_DISABLE_TELEMETRY\n"
        "print('done')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_TELEMETRY"}
    environment |= {"HF_TOKEN": "secret", "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == "done", result.stderr
