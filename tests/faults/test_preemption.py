"""Told to stop at any moment, a run saves, ends with 128 + signal, and goes on later; told twice it ends at once."""

import itertools
import json
import signal

import harness
import pytest
import remains

SHORT = {"num_steps": 6, "eval_every_steps": 4, "checkpoint__every_steps": 2}


@pytest.fixture(scope="module")
def whole(uncut):
    """A run that nobody interrupted."""
    return uncut("plain", **SHORT)


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)])
def test_a_signal_beside_the_steps(tiny, whole, tmp_path, numbers):
    """One run is cut while it saves, while it evaluates, and in its final evaluation, by one signal after the other."""
    config = tiny("plain", **SHORT)
    moments = [("saving", 1, 2), ("evaluating", 1, 4), ("evaluating", 7, 6)]
    for (during, at, saved), number in zip(moments, itertools.cycle(numbers), strict=False):
        fault = {"signal": number.name, "during": during, "at": at}
        assert harness.train_here(config, tmp_path, fault=fault) == 128 + number
        assert max(remains.steps(tmp_path)) == saved
        evaluated = [line["step"] for line in remains.metrics(tmp_path) if line["split"] != "train"]
        assert evaluated == [4] * (saved == 6)  # the one that was going on was given up, and is made up for
    assert harness.train_here(config, tmp_path) == 0
    assert remains.differences(whole, tmp_path) == []


def test_a_signal_before_the_first_step(data, tmp_path):
    flags = [*data.flags("plain"), f"--workdir={tmp_path / 'run'}", f"--config.data.data_dir={tmp_path}"]
    fault = {"signal": "SIGTERM", "during": "preparing"}
    harness.run("train.py", *flags, fault=fault, expect=143)
    assert remains.steps(tmp_path / "run") == []
    fault = {"signal": "SIGTERM", "during": "compiling", "delay": 0.01}
    printed = harness.run("train.py", *flags, fault=fault, expect=143)
    assert remains.steps(tmp_path / "run") == []
    assert "SIGTERM: ends at once; nothing was trained since this start" in printed  # compiling may take minutes
    assert "Traceback" not in printed


def test_a_second_ctrl_c_ends_the_run_at_once_and_leaves_whole_checkpoints(data, tmp_path):
    flags = [*data.flags("plain"), f"--workdir={tmp_path}", "--config.num_steps=100000"]
    flags += ["--config.checkpoint.every_steps=1", "--config.eval_every_steps=100000"]
    fault = {"signal": "SIGINT", "during": "saving", "at": 3, "delay": 0.01, "again": 0.01}
    with harness.Child("train.py", *flags, fault=fault) as child:
        assert child.end() == 130, child.printed
    assert remains.steps(tmp_path)
    for step in remains.steps(tmp_path):
        assert remains.arrays(tmp_path, step)["training['step']"] == step
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
