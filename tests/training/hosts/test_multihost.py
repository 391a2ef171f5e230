"""Two processes of some CPU devices each: they train as one does, stop together, and end when one of them fails."""

import re
import signal
import socket
import time

import harness
import jax
import numpy as np
import pytest
import remains
from jax.experimental import multihost_utils

from flax_mnv2 import DataError
from flax_mnv2.training import multihost
from flax_mnv2.training.faults.interrupt import StopRequest
from flax_mnv2.training.logging.metrics_writer import read_metrics

HEARTBEAT = 8  # seconds
ABORTED = 128 + signal.SIGABRT  # as JAX ends a process when another has died
STEPS = {"num_steps": 8, "eval_every_steps": 3, "log_every_steps": 1, "batch_size": 16}
STEPS |= {"optimizer__name": "sgd", "optimizer__learning_rate": 0.001}  # so that rounding stays rounding
ENDLESS = STEPS | {"num_steps": 100_000, "ema__decay": 0.0, "ema__ramp": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Drawn shapes and photos, prepared once."""
    return harness.Data(tmp_path_factory.mktemp("hosts_data"))


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The folder of a run of one process on one device, and its config."""
    workdir, config = tmp_path_factory.mktemp("alone"), data.config("plain", **STEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", harness.BLOCKS)
        assert harness.train_here(config, workdir) == 0
    return workdir, config


def _flags(data, workdir, **fields):
    values = (f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items())
    return [*data.flags("plain"), f"--workdir={workdir}", *values]


def _losses(workdir):
    return [line["loss"] for line in read_metrics(workdir) if line["split"] == "train"]


def _evaluations(workdir):
    lines = [line for line in read_metrics(workdir) if line["split"] != "train"]
    return [value for line in lines for value in line.values() if not isinstance(value, str)]


def _check_same(one, other):
    assert np.ptp(_losses(one)) > 0.01  # else agreement would say little
    np.testing.assert_allclose(_losses(other)[:4], _losses(one)[:4], rtol=2e-5)
    np.testing.assert_allclose(_losses(other), _losses(one), rtol=2e-3)
    assert _evaluations(other) == pytest.approx(_evaluations(one), abs=1e-3)


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_train_as_one_does_and_sigterm_to_one_stops_both_at_a_step_from_which_one_goes_on(
    data, alone, tmp_path, monkeypatch
):
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", harness.BLOCKS)
    (one, config), two = alone, tmp_path
    flags = _flags(data, two, **STEPS, shard_optimizer_state=True)
    fault = {"signal": "SIGTERM", "during": "training", "at": 2}
    with harness.two_processes(*flags, faults={1: fault}, pace=0.5) as processes:
        harness.check_ends(processes, 143, 143)
    saved = max(remains.steps(two))
    assert 2 <= saved < 8
    assert f"SIGTERM: saved step {saved}" in processes[0].printed
    assert "step 2" in processes[0].printed
    assert "step 2" not in processes[1].printed  # one of them prints

    assert harness.train_here(config, two) == 0
    _check_same(one, two)


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_two_and_under_pmap(data, alone, tmp_path, monkeypatch):
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", harness.BLOCKS)
    (one, config), two = alone, tmp_path
    fault = {"signal": "SIGTERM", "during": "training", "at": 2}
    assert harness.train_here(config, two, fault=fault) == 143
    with harness.two_processes(*_flags(data, two, **STEPS), "--config.parallel=pmap") as processes:
        harness.check_ends(processes, 0, 0)
    assert "going on from step 2;" in processes[0].printed
    _check_same(one, two)


# ---- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_when_the_leader_is_killed_jax_ends_the_other_and_names_it(data, tmp_path):
    flags = _flags(data, tmp_path, **ENDLESS)
    fault = {"signal": "SIGKILL", "during": "training", "at": 2}
    with harness.two_processes(*flags, faults={0: fault}, heartbeat=HEARTBEAT) as (first, second):
        assert first.end() == 128 + signal.SIGKILL
        began = time.monotonic()
        assert second.end() == ABORTED
        assert time.monotonic() - began < HEARTBEAT + 10
    assert "leader task was preempted/died" in second.printed


@pytest.mark.slow
def test_data_that_one_host_lacks_ends_both_and_is_named_there(data, tmp_path):
    flags = _flags(data, tmp_path / "run")
    own = {1: [f"--config.data.archive={tmp_path / 'nothing'}", f"--config.data.data_dir={tmp_path}"]}
    with harness.two_processes(*flags, own=own, heartbeat=HEARTBEAT) as (first, second):
        assert second.end() == 2
        began = time.monotonic()
        assert f"{tmp_path / 'nothing'}" in second.printed.partition("error: ")[2]
        assert "Traceback" not in second.printed
        assert first.end() == ABORTED
        assert time.monotonic() - began < HEARTBEAT + 10
    assert re.search(r"Task 1 heartbeat timeout|stopped sending heartbeats\):\n1\n", first.printed)


def test_different_configs_are_refused_by_name(data, tmp_path):
    own = {1: ["--config.batch_size=16", "--config.data.num_threads=3"]}
    with harness.two_processes(*_flags(data, tmp_path), own=own, devices=1) as (first, second):
        assert [first.end(), second.end()] == [2, 2]
    assert second.printed.partition("error: ")[2] == (
        "All processes of a run must have the same settings. Those of process 1:\n"
        "  config.batch_size: 8 in process 0, 16 here\n"
    )
    assert first.printed.partition("error: ")[2] == (
        "All processes of a run must have the same settings. Those of process 0: not those of [1], which say what "
        "differs.\n"
    )


def test_where_no_process_0_is_the_script_says_what_it_waited_for(data, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    flags = [*_flags(data, tmp_path), f"--coordinator_address={address}", "--num_processes=2"]
    printed = harness.run("train.py", *flags, "--process_id=1", "--initialization_timeout=1", expect=ABORTED)
    assert f"process 1 of 2 at {address} waits for all others, 1 s at most\n" in printed
    assert "DEADLINE_EXCEEDED" in printed


def test_splits_that_some_process_cannot_train_on(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 8)
    monkeypatch.setattr(multihost, "from_leader", lambda make: 60)
    multihost.check_enough_examples(60, "train")
    with pytest.raises(DataError, match="'train' has 60 examples for process 0 and 50 for process 0"):
        multihost.check_enough_examples(50, "train")
    with pytest.raises(DataError, match=r"'train' has 7 example\(s\) for 8 processes"):
        multihost.check_enough_examples(7, "train")


def test_a_stop_of_several_processes_is_jaxs_and_no_question_comes_twice(monkeypatch):
    asked, handler = [], signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda n: asked.append(n) or len(asked) == 5)
    answers = []
    for _ in range(2):
        with StopRequest() as stop:
            assert signal.getsignal(signal.SIGTERM) == handler  # else JAX would not hear of it
            answers += [stop.now() for _ in range(3)]
    assert answers == [False, False, False, False, True, True]
    assert stop.signal == signal.SIGTERM
    assert asked == list(range(asked[0], asked[0] + 5))
