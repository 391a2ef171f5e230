"""Orbax folders by somebody who means harm: one error, nothing is imported, nothing outside is read."""

import json
import sys

import numpy as np
import pytest

from flax_mnv2 import CheckpointError
from flax_mnv2.checkpoint.reading import read_item


def _read(folder):
    return read_item(folder, "variables", {})


def _orbax(folder):
    """One array as Orbax writes it; zarr files by themselves, so that they can be changed by hand."""
    import orbax.checkpoint as ocp

    path = folder / "variables"
    tree = {"params": {"w": np.zeros((8, 8), np.float32)}}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False)) as checkpointer:
        checkpointer.save(path.absolute(), tree)
    assert _read(folder)["params/w"].shape == (8, 8)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "|O"},
        {"compressor": {"id": "pickle"}},
        {"filters": [{"id": "pickle"}]},
    ],
)
def test_arrays_that_need_more_than_numbers_are_not_read(tmp_path, changes):
    note = _orbax(tmp_path) / "params.w" / ".zarray"
    note.write_text(json.dumps(json.loads(note.read_text()) | changes))
    with pytest.raises(CheckpointError, match="Cannot read"):
        _read(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "[" * 100_000, '{"tree_metadata": 3}', '{"tree_metadata": {"x": {"key_metadata": 1}}}', "null", '"x"'],
)
def test_a_hostile_note_of_tensors_is_an_error(tmp_path, text):
    (_orbax(tmp_path) / "_METADATA").write_text(text)
    with pytest.raises(CheckpointError, match="Cannot read"):
        _read(tmp_path)


def test_types_in_the_note_of_tensors_are_looked_up_not_imported(tmp_path):
    """Orbax takes the type by a table; a name that is not there is refused or read as an array, never imported."""
    note = _orbax(tmp_path) / "_METADATA"
    text = note.read_text()
    assert '"np.ndarray"' in text
    note.write_text(text.replace('"np.ndarray"', '"antigravity.open"'))
    try:
        state = _read(tmp_path)
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
