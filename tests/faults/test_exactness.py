"""A run that was cut, again and again, is the run that was not: arrays bit for bit, metrics, events."""

import functools
import json
import shutil
import signal

import harness
import pytest
import remains

SHORT = {"num_steps": 8, "eval_every_steps": 4, "checkpoint__every_steps": 2}


@pytest.fixture(scope="module")
def whole(uncut):
    """(task, mode, devices) → the folder of a run that nobody cut."""

    @functools.cache
    def train(task, mode, devices):
        return uncut(task, **SHORT, parallel=mode, mode=mode, devices=devices)

    return train


@pytest.mark.parametrize(("task", "mode", "devices"), [("segmentation", "jit", 1), ("classification", "pmap", 2)])
def test_cut_by_sigterm_at_steps_that_nothing_else_happens_at(tiny, whole, tmp_path, task, mode, devices):
    config = tiny(task, **SHORT, parallel=mode)
    place = {"mode": mode, "devices": devices}
    right = whole(task, mode, devices)
    for fault in ({"during": "training", "at": 3}, {"during": "evaluating", "at": 1}):
        assert harness.train_here(config, tmp_path / "cut", fault={"signal": "SIGTERM", **fault}, **place) == 143
    assert max(remains.steps(tmp_path / "cut")) == 4
    assert harness.train_here(config, tmp_path / "cut", **place) == 0
    assert remains.differences(right, tmp_path / "cut") == []
    lines = [(line["step"], line["split"] == "train") for line in remains.metrics(tmp_path / "cut")]
    assert lines == [(1, True), (2, True), (4, True), (4, False), (6, True), (8, True), (8, False)]


def test_cut_by_signals_beside_the_steps(tiny, whole, tmp_path):
    """One run is cut while it saves, while it evaluates, and in its final evaluation, by one signal after the other."""
    config = tiny("plain", **SHORT)
    for during, at, saved, number in (
        ("saving", 1, 2, signal.SIGTERM),
        ("evaluating", 1, 4, signal.SIGINT),
        ("evaluating", 7, 8, signal.SIGTERM),
    ):
        fault = {"signal": number.name, "during": during, "at": at}
        assert harness.train_here(config, tmp_path, fault=fault) == 128 + number
        assert max(remains.steps(tmp_path)) == saved
        evaluated = [line["step"] for line in remains.metrics(tmp_path) if line["split"] != "train"]
        assert evaluated == [4] * (saved == 8)  # the one that was going on was given up, and is made up for
    assert harness.train_here(config, tmp_path) == 0
    assert remains.differences(whole("plain", "jit", 1), tmp_path) == []


def test_cut_by_kill_9_and_gone_on_with_an_input_worker(data, tiny, whole, tmp_path):
    """The script is killed; what it left is gone on with here, where XLA has a thread for each of four devices."""
    flags = [*data.flags("plain"), *(f"--config.{name.replace('__', '.')}={n}" for name, n in SHORT.items())]
    flags += [f"--workdir={tmp_path / 'cut'}"]
    fault = {"signal": "SIGKILL", "during": "training", "at": 5}
    harness.run("train.py", *flags, fault=fault, expect=137, environment={"NPROC": "4"})
    assert remains.steps(tmp_path / "cut") == [2, 4]
    assert harness.train_here(tiny("plain", **SHORT, data__num_workers=1), tmp_path / "cut") == 0
    assert remains.differences(whole("plain", "jit", 1), tmp_path / "cut") == []


def test_the_comparison_sees_what_differs(whole, tmp_path):
    one, other = whole("segmentation", "jit", 1), tmp_path / "other"
    shutil.copytree(one, other)
    assert remains.differences(one, other) == []
    lines = (other / "metrics.jsonl").read_text().splitlines()
    changed = json.dumps(json.loads(lines[-1]) | {"step": 9})
    (other / "metrics.jsonl").write_text("\n".join([*lines[:-1], changed, changed]) + "\n")
    next((other / "tensorboard").glob("events*")).unlink()
    arrays = remains.arrays(one, 8)
    name = next(name for name in arrays if name.startswith("ema"))
    assert remains.different_arrays(arrays, arrays | {name: arrays[name] + 1e-7}) == [f"array {name}"]
    found = remains.differences(one, other)
    assert sum(line.startswith("metrics.jsonl") for line in found) == 2
    assert any(line.startswith("TensorBoard") for line in found)
