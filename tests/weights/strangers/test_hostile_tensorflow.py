"""TensorFlow's, Keras' and TFLite files that are cut, changed or made by somebody who means harm: one error each."""

import gzip
import io
import pathlib
import struct
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from flax_mnv2 import CheckpointError, UserError, convert
from flax_mnv2.weights.opening import open_weights
from flax_mnv2.weights.tensorflow import arrays, bundle, frozen_graph, tflite, wire

GOLDEN = pathlib.Path(__file__).parents[2] / "parity" / "golden" / "weights" / "foreign_weights.tar.xz"
FLOAT32 = 1
INDEX, DATA = "slim/model.ckpt-1200.index", "slim/model.ckpt-1200.data-00000-of-00001"

pytestmark = pytest.mark.usefixtures("tiny_blocks")


@pytest.fixture(scope="module")
def originals():
    """Whole files by name."""
    with tarfile.open(GOLDEN) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / pathlib.PurePosixPath(name).name
        path.write_bytes(content)
        return path

    return write


def _message(path):
    """The one message of a source that is refused."""
    with pytest.raises(CheckpointError) as caught:
        open_weights(path)
    message = str(caught.value)
    assert message.count("\n") < 2
    assert str(path.parent) in message
    return message


@pytest.mark.parametrize("name", ["float.tflite", "int8.tflite", "frozen.pb", "model.weights.h5", "model.keras"])
@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.3, 0.9])
def test_a_cut_file_is_one_error(originals, write, name, fraction):
    if name.endswith(("h5", "keras")):
        pytest.importorskip("h5py")
    content = originals[name]
    _message(write(name, content[: int(len(content) * fraction)]))


@pytest.mark.parametrize("name", ["float.tflite", "int8.tflite", "frozen.pb", INDEX])
def test_changed_bytes_are_an_error_or_a_model(originals, write, name):
    """Every eighth change sets a length or an offset to its largest."""
    content, rng = originals[name], np.random.default_rng(0)
    write(DATA, originals[DATA])
    refused = 0
    for turn in range(24):
        changed = bytearray(content)
        for place in rng.integers(0, min(len(content), 4000), 3) * rng.choice([1, -1]):
            changed[place : place + 4 if turn % 8 == 0 and place >= 0 else place + 1] = b"\xff" * (
                1 + 3 * (turn % 8 == 0)
            )
        try:
            open_weights(write(name, bytes(changed)))
        except UserError:
            refused += 1
    assert refused > 4


def test_damage_to_a_checkpoint_is_found_by_its_checksums(originals, write):
    index, data = originals[INDEX], bytearray(originals[DATA])
    path = write(INDEX, index)
    assert "model.ckpt-1200.data-00000-of-00001, which belongs to it, is not there" in _message(path)
    data[::1000] = bytes(byte ^ 1 for byte in data[::1000])  # some of them in what is read
    write(DATA, bytes(data))
    assert "is damaged (CRC-32C)" in _message(path)
    write(DATA, originals[DATA][:-400])
    assert "its data file ends before" in _message(path)
    write(DATA, originals[DATA])
    changed = bytearray(index)
    changed[100] ^= 1
    assert "its index is damaged (CRC-32C)" in _message(write(INDEX, bytes(changed)))
    assert "what is in it is no such file, or cut" in _message(write(INDEX, index[:-1]))


def test_a_checkpoint_of_another_network_is_named_by_its_variables(write):
    """A graph of constants that no MobileNetV2 has."""
    with pytest.raises(CheckpointError, match=r"no format known here\.\n +found 1: resnet_v1_50/conv1/weights"):
        open_weights(write("resnet.pb", _graph("resnet_v1_50/conv1/weights", (1, 1, 3, 4))))


def _field(number, content):
    if isinstance(content, int):
        return bytes([number << 3]) + _varint(content)
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value):
    encoded = b""
    while value >= 0x80:
        encoded, value = encoded + bytes([value & 0x7F | 0x80]), value >> 7
    return encoded + bytes([value])


def _graph(name, shape, content=None):
    """A frozen graph of one constant."""
    sizes = b"".join(_field(2, _field(1, size)) for size in shape)
    content = np.zeros(shape, np.float32).tobytes() if content is None else content
    tensor = _field(1, FLOAT32) + _field(2, sizes) + _field(4, content)
    attribute = _field(1, b"value") + _field(2, _field(8, tensor))
    return _field(1, _field(1, name.encode()) + _field(2, b"Const") + _field(5, attribute))


def test_a_shape_beyond_memory_is_refused_before_anything_is_made(write):
    shape = (2**20, 2**20)
    for content in (b"", b"\0" * 16):
        assert "more than any weights of a MobileNetV2" in _message(
            write("big.pb", _graph("MobilenetV2/Conv/weights", shape, content))
        )
    assert "do not make the shape" in _message(
        write("small.pb", _graph("MobilenetV2/Conv/weights", (2, 2), b"\0" * 12))
    )


@pytest.mark.parametrize("data", [b"\x80", b"\xff" * 11, b"\x0a\x05abc", b"\x0b", b"\x0d\0"])
def test_no_message_of_protocol_buffers_is_an_error(data):
    with pytest.raises(CheckpointError):
        list(wire.fields(memoryview(data)))
    assert not frozen_graph.is_graph(data)


def test_an_archive_that_unpacks_without_end_is_refused(write, monkeypatch):
    """What lies in it is counted, whatever its headers say."""
    monkeypatch.setattr(arrays, "MAX_BYTES", 2**20)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("model.ckpt.data-00000-of-00001")
        member.size = 2**22
        archive.addfile(member, io.BytesIO(bytes(2**22)))
    assert "unpacks to more than 1,048,576 bytes" in _message(write("bomb.tgz", gzip.compress(buffer.getvalue())))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["readme.txt", "empty.pb"], "holds no TensorFlow checkpoints"),
        (["a.pb", "b.pb"], "holds 2 TensorFlow checkpoints .*a.pb, b.pb"),
    ],
)
def test_an_archive_must_hold_one_model(write, names, message):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in names:
            member, content = tarfile.TarInfo(name), b"" if "empty" in name else _graph("x/weights", (1,))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    path = write("zoo.tar.gz", buffer.getvalue())
    with pytest.raises(CheckpointError, match=message):
        open_weights(path)


def test_a_folder_of_several_checkpoints_takes_the_latest_or_asks(originals, tmp_path):
    for step in (30, 1200):
        (tmp_path / f"model.ckpt-{step}.index").write_bytes(originals[INDEX])
    with pytest.raises(CheckpointError, match=r"holds 2 TensorFlow checkpoints; name one of them, such as .*ckpt-30"):
        open_weights(tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/model.ckpt-1200"\n')
    assert bundle.find_index(tmp_path).name == "model.ckpt-1200.index"
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "../../model.ckpt-9"\n')
    with pytest.raises(CheckpointError, match="holds 2"):
        open_weights(tmp_path)


def test_links_in_hdf5_lead_nowhere(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["kernel"] = np.ones(3)
    for name, link in (
        ("external", h5py.ExternalLink("secret.h5", "kernel")),
        ("soft", h5py.SoftLink("/layers/conv2d/vars/1")),
    ):
        path = tmp_path / f"{name}.weights.h5"
        with h5py.File(path, "w") as file:
            file["layers/conv2d/vars/1"] = np.ones(3)
            file["layers/conv2d/vars/0"] = link
        assert "is not in the file, or a link" in _message(path)
    path = tmp_path / "stored.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/conv2d/vars/0", (3,), "f8", external=[(str(tmp_path / "secret.h5"), 0, 24)])
    assert "lies in another file" in _message(path)


def test_arrays_in_hdf5_are_counted_before_they_are_read(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "bomb.weights.h5"
    with h5py.File(path, "w") as file:  # never written: a few bytes in the file
        file.create_dataset("layers/conv2d/vars/0", (2**40,), "f4", chunks=(2**20,), compression="gzip")
    assert path.stat().st_size < 10_000
    assert "more than 1,073,741,824 bytes" in _message(path)


def test_a_keras_archive_is_counted_before_it_is_read(tmp_path, monkeypatch):
    pytest.importorskip("h5py")
    monkeypatch.setattr(arrays, "MAX_BYTES", 1000)
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(10**6))
    assert "has 1,000,000 bytes, far above any MobileNetV2" in _message(path)


def test_a_tflite_file_of_another_network_is_refused(write):
    """A model without tensors or operations."""
    table = struct.pack("<HH", 4, 4) + struct.pack("<i", 4)
    assert "it has 0 graphs; expected one" in _message(write("x.tflite", struct.pack("<I", 12) + b"TFL3" + table))


def test_a_graph_that_turns_in_circles_is_refused(originals, write):
    """Its second padding takes what it makes itself."""
    content = bytearray(originals["symmetric.tflite"])
    graph = tflite.parse_graph(bytes(content))
    inputs, outputs = (np.int32(side).tobytes() for side in (graph.operations[0].inputs, graph.operations[0].outputs))
    [start] = [place for place in range(0, len(content), 4) if content[place : place + len(inputs)] == inputs]
    content[start : start + 4] = outputs
    assert "no order of execution" in _message(write("x.tflite", bytes(content)))


def test_every_command_ends_with_one_error(write, tmp_path, capsys, originals):
    path = write("float.tflite", originals["float.tflite"][:5000])
    assert convert.main([str(path), str(tmp_path / "out")]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert error.startswith("error: Cannot read the TFLite file")
    assert not (tmp_path / "out").exists()


def test_a_moving_average_that_is_not_there_is_an_error(write, originals):
    for name in ("float.tflite", "frozen.pb"):
        with pytest.raises(CheckpointError, match="no moving average beside the weights"):
            open_weights(write(name, originals[name]), weights="ema")


def test_without_h5py_the_extra_is_named(write, originals, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "pip install 'flax-mnv2[keras]'" in _message(write("model.weights.h5", originals["model.weights.h5"]))
