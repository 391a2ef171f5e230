"""Told to stop before it has trained, a run ends at once, and told twice; test_exactness.py has later moments."""

import json

import harness
import remains


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
