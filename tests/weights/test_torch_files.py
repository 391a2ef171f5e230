"""Checkpoints as PyTorch's training programs write them: which weights are taken, and what may lie beside them."""

import argparse
import collections
import pathlib

import numpy as np
import pytest

from flax_mnv2 import CheckpointError, ConfigError
from flax_mnv2.weights.tensor_files import read_tensor_file

torch = pytest.importorskip("torch")


def _weights(value):
    return {"a.weight": torch.full((2, 3), float(value)), "a.bias": torch.full((2,), float(value))}


def _first(found):
    return found.state["a.weight"][0, 0]


# What a program writes, and the name of what is taken with weights="auto", "ema" and "raw"; None for an error.
CHECKPOINTS = {
    "plain": (_weights(1), "", None, ""),
    "torchvision": ({"model": _weights(1), "model_ema": _weights(2), "epoch": 3}, "model_ema", "model_ema", "model"),
    "timm": (
        {"state_dict": _weights(1), "state_dict_ema": _weights(2), "metric": np.float64(0.5)},
        "state_dict_ema",
        "state_dict_ema",
        "state_dict",
    ),
    "average alone": ({"model_ema": _weights(2)}, "model_ema", "model_ema", None),
    "deep": ({"ema": {"decay": 0.9, "module": _weights(2)}, "net": _weights(1)}, "ema/module", "ema/module", "net"),
    "vainf": ({"model_state": _weights(1), "best_score": 0.5}, "model_state", None, "model_state"),
    "unusual": ({"student": _weights(1), "rng": {"cpu": torch.zeros(3)}}, "student", None, "student"),
    "two": ({"generator": _weights(1), "critic": _weights(2)}, None, None, None),
    "two averages": ({"ema_1": _weights(1), "ema_2": _weights(2), "model": _weights(3)}, None, None, "model"),
    "no average": ({"state_dict": _weights(1), "schema": _weights(2)}, "state_dict", None, "state_dict"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_which_weights_are_taken(tmp_path, name):
    content, *expected = CHECKPOINTS[name]
    torch.save(content, tmp_path / "last.pth")
    for weights, place in zip(("auto", "ema", "raw"), expected, strict=True):
        if place is None:
            with pytest.raises(CheckpointError, match=r"last\.pth"):
                read_tensor_file(tmp_path / "last.pth", weights)
            continue
        found = read_tensor_file(tmp_path / "last.pth", weights)
        wanted = content
        for part in filter(None, place.split("/")):
            wanted = wanted[part]
        assert _first(found) == wanted["a.weight"][0, 0]
        assert [place in note for note in found.notes] == [True] * bool(place)


def test_what_was_not_taken_is_said(tmp_path):
    torch.save({"state_dict": _weights(1), "state_dict_ema": _weights(2)}, tmp_path / "last.pth")
    [average] = read_tensor_file(tmp_path / "last.pth").notes
    assert average == "took the moving average from 'state_dict_ema' in the file; weights=\"raw\" takes 'state_dict'"
    [raw] = read_tensor_file(tmp_path / "last.pth", "raw").notes
    assert raw == "took the weights from 'state_dict' in the file; its moving average is under 'state_dict_ema'"


def test_a_choice_that_is_none(tmp_path):
    from flax_mnv2 import from_pretrained

    with pytest.raises(ConfigError, match="weights must be one of 'auto', 'ema', 'raw'; found 'best'"):
        from_pretrained(tmp_path, weights="best")


@pytest.mark.parametrize("name", ["last.ckpt", "model_best.pth.tar", "checkpoint.tar", "last.weights", "last"])
def test_names_of_checkpoints(tmp_path, name):
    torch.save({"state_dict": _weights(1), "callbacks": {"best": {"a": torch.tensor(0.5)}}}, tmp_path / name)
    assert _first(read_tensor_file(tmp_path / name)) == 1


@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(lr=0.1, output=pathlib.Path("runs") / "x", best=np.float32(3)),
        pathlib.PurePosixPath("a") / "b",
        np.float64(0.71),
        np.arange(3),
        np.dtype("float32"),
        collections.Counter(a=1),
        torch.__version__,
    ],
    ids=lambda beside: type(beside).__name__,
)
@pytest.mark.parametrize("legacy", [False, True])
def test_what_programs_keep_beside_the_weights(tmp_path, beside, legacy):
    content = {"model": _weights(1), "args": beside}
    torch.save(content, tmp_path / "last.pth", _use_new_zipfile_serialization=not legacy)
    assert _first(read_tensor_file(tmp_path / "last.pth")) == 1


def test_paths_of_windows_are_read(tmp_path):
    """Written there, where pathlib has the class; the name alone is exchanged here."""
    torch.save({"model": _weights(1), "dir": pathlib.PosixPath("C:/runs")}, tmp_path / "l.pth", pickle_protocol=2)
    import zipfile

    with zipfile.ZipFile(tmp_path / "l.pth") as source, zipfile.ZipFile(tmp_path / "w.pth", "w") as target:
        for item in source.infolist():
            target.writestr(item, source.read(item).replace(b"PosixPath", b"WindowsPath"))
    assert _first(read_tensor_file(tmp_path / "w.pth")) == 1


def test_programs_are_refused_by_name(tmp_path):
    torch.save(torch.nn.Conv2d(1, 1, 1), tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match=r"it names torch\.nn\.modules\.conv\.Conv2d.*Save the state dict"):
        read_tensor_file(tmp_path / "module.pth")
    (tmp_path / "notes.txt").write_text("lr 0.1")
    with pytest.raises(CheckpointError, match=r"ends in \.txt; expected a file of weights"):
        read_tensor_file(tmp_path / "notes.txt")
