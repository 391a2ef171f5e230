"""Several processes with two CPU devices each: they train as one process does, and stop together when one fails."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from flax_mnv2 import DataError
from flax_mnv2.checkpoint.run import Checkpoints
from flax_mnv2.data.loader.batches import BatchIterator
from flax_mnv2.training import distributed, host_link
from flax_mnv2.training.config.defaults import flatten, jsonable
from flax_mnv2.training.distributed import Place, find_place
from flax_mnv2.training.faults.interrupt import StopRequest
from flax_mnv2.training.host_link import HostError, join
from flax_mnv2.training.host_server import HostServer
from flax_mnv2.training.logging.metrics_writer import read_metrics
from flax_mnv2.training.loop import train
from flax_mnv2.training.parallel import make_parallel

ROOT = pathlib.Path(__file__).resolve().parents[3]
WORKER = pathlib.Path(__file__).with_name("host_worker.py")
BLOCKS = ((8, 1, 2), (8, 1, 1), (16, 2, 2))  # as the fixture tiny_blocks
STEPS = 5


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Processes:
    """Two worker processes and what they print; killed at the end of the block."""

    def __init__(self, folder, config, *, trains, own=None, limit=10.0, workdir=None):
        folder.mkdir(parents=True, exist_ok=True)
        self.workdir = workdir or folder / "run"
        spec = {
            "config": jsonable(flatten(config)),
            "block_table": BLOCKS,
            "count": 2,
            "port": _free_port(),
            "workdir": str(self.workdir),
            "trains": trains,
            "own": {str(index): value for index, value in (own or {}).items()},
            "timeout": 60,
            "limit": limit,
        }
        self._spec = folder / "spec.json"
        self._spec.write_text(json.dumps(spec))
        environment = os.environ | {
            "JAX_NUM_CPU_DEVICES": "2",
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
            "PYTHONPATH": str(ROOT),
        }
        self._outputs = [folder / f"output.{index}" for index in range(2)]
        self._processes = []
        for index, output in enumerate(self._outputs):
            with output.open("w") as file:
                command = [sys.executable, str(WORKER), str(self._spec), str(index)]
                self._processes.append(
                    subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self._processes:
            process.kill()
            process.wait()

    def wait(self, index, timeout=200):
        """Exit status of one process and what it printed."""
        try:
            status = self._processes[index].wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"process {index} hangs: {self.printed(0)}\n{self.printed(1)}")
        return status, self.printed(index)

    def printed(self, index):
        return self._outputs[index].read_text()

    def batches(self, index):
        """The examples that a process trained on, by step."""
        return json.loads(pathlib.Path(f"{self._spec}.{index}").read_text())[:STEPS]

    def seconds_since_fault(self):
        moment = re.search(r"fault ([\d.]+)", self.printed(0) + self.printed(1))
        return time.time() - float(moment.group(1))


# ---- training -------------------------------------------------------------------------------------------------------


def _short(config):
    config.num_steps = config.eval_every_steps = STEPS
    config.optimizer.learning_rate = 0.005  # so that rounding stays rounding
    config.optimizer.schedule = "constant"  # one program for runs of every length
    config.eval.batch_size = 40
    config.log_every_steps = 1
    return config


@pytest.fixture
def config(tiny_config):
    return _short(tiny_config)


@pytest.fixture
def everything_on(classifier_config):
    """A classifier with all that could depend on how the batch is split."""
    config = _short(classifier_config)
    config.batch_size, config.gradient_accumulation_steps = 16, 2
    config.data.mixup_alpha, config.data.cutmix_alpha, config.data.augment_repeats = 0.2, 1.0, 2
    config.data.auto_augment, config.data.random_erasing = "trivial_augment_wide", 0.3
    config.drop_path_rate, config.model.classifier_dropout_prob, config.label_smoothing = 0.2, 0.2, 0.1
    config.ema.decay, config.ema.ramp = 0.9, True
    return config


def _alone(config, workdir, mode, num_devices):
    """Trains in this process; returns the indices of its batches."""
    seen, original = [], BatchIterator.__next__

    def following(self):
        batch = original(self)
        if "mask" not in batch:
            seen.append(batch["index"].tolist())
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchIterator, "__next__", following)
        train(config, workdir, parallel=make_parallel(mode, jax.devices()[:num_devices]))
    return seen[:STEPS]


def _losses(workdir):
    return [line["loss"] for line in read_metrics(workdir) if line["split"] == "train"]


def _evaluation(workdir):
    return {name: value for name, value in read_metrics(workdir)[-1].items() if name != "split"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "job", "sharded"),
    [("jit", "everything_on", True), ("pmap", "config", False)],
    ids=["jit-classification-sharded", "pmap-segmentation"],
)
def test_two_processes_train_as_one_does_and_their_checkpoint_goes_on_in_one(request, tmp_path, mode, job, sharded):
    config = request.getfixturevalue(job)
    whole, wide = tmp_path / "whole", tmp_path / "wide"
    batches = _alone(config, whole, "jit", 1)
    assert len(set(map(tuple, batches))) == STEPS
    losses = _losses(whole)
    assert len(losses) == STEPS
    assert np.ptp(losses) > 0.01  # else agreement would say little
    config.parallel, config.shard_optimizer_state = mode, sharded
    _alone(config, wide, mode, 4)
    np.testing.assert_allclose(_losses(wide), losses, rtol=2e-5)

    with Processes(tmp_path / "two", config, trains=True) as two:
        for index in (1, 0):
            status, printed = two.wait(index)
            assert status == 0, printed
    assert "accuracy" in two.printed(0).partition("step 5: ")[2]
    assert "step 5" not in two.printed(1)
    together = [first + second for first, second in zip(two.batches(0), two.batches(1), strict=True)]
    assert together == batches
    np.testing.assert_allclose(_losses(two.workdir), losses, rtol=2e-5)
    assert _evaluation(two.workdir) == pytest.approx(_evaluation(whole), abs=1e-3)

    shutil.rmtree(two.workdir / "checkpoints" / "step_5")
    (two.workdir / "metrics.jsonl").unlink()
    train(config, two.workdir, parallel=make_parallel("jit", jax.devices()[:1]))
    np.testing.assert_allclose(_losses(two.workdir), losses[3:], rtol=2e-5)
    assert _evaluation(two.workdir) == pytest.approx(_evaluation(whole), abs=1e-3)


@pytest.mark.slow
def test_sigterm_to_one_stops_both_at_the_same_step_and_one_processs_checkpoint_goes_on_in_two(config, tmp_path):
    _alone(config, tmp_path / "run", "jit", 1)
    (tmp_path / "run" / "config.json").unlink()  # another length makes it another run
    config.num_steps = config.eval_every_steps = config.checkpoint.every_steps = 100_000
    with Processes(
        tmp_path, config, trains=True, own={1: {"fault": {"kind": "term", "step": STEPS + 2}}}, workdir=tmp_path / "run"
    ) as two:
        for index in (0, 1):
            status, printed = two.wait(index)
            assert status == 128 + signal.SIGTERM, printed
    saved = Checkpoints(tmp_path / "run" / "checkpoints", read_only=True).latest_step()
    assert STEPS + 2 <= saved < STEPS + 100
    assert f"going on from step {STEPS};" in two.printed(0)
    assert f"SIGTERM: saved step {saved}" in two.printed(0)
    assert "error" not in two.printed(0) + two.printed(1)


# ---- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "faulty", "status", "reason"),
    [
        ("kill", 1, -signal.SIGKILL, r"it ended without a word \(killed, out of memory"),
        ("kill", 0, -signal.SIGKILL, r"it ended without a word \(killed, out of memory"),
        ("exception", 1, 1, "ZeroDivisionError: a bug"),
        ("user_error", 0, 2, r"Example 'cat.jpg': corrupt image. Replace it."),
        ("freeze", 1, None, "no sign of life for 3 s"),
    ],
)
def test_when_one_fails_the_other_stops_and_names_it(config, tmp_path, kind, faulty, status, reason):
    own = {faulty: {"fault": {"kind": kind, "step": 3}}}
    with Processes(tmp_path, config, trains=False, own=own, limit=3.0) as two:
        other, printed = two.wait(1 - faulty, timeout=90)
        assert two.seconds_since_fault() < 10
        assert other == host_link.PEER_FAILED_STATUS, printed
        assert re.search(f"error: Process {faulty} on {socket.gethostname()} failed, so all stop: {reason}", printed)
        assert printed.count("error") == 1, printed
        assert "Traceback" not in printed
        assert "stack trace" not in printed
        if status is not None:
            assert two.wait(faulty, timeout=30)[0] == status


def test_different_configs_are_refused_by_name(config, tmp_path):
    own = {1: {"config": {"batch_size": 16, "data.num_threads": 3}}}
    with Processes(tmp_path, config, trains=False, own=own) as two:
        for index in (0, 1):
            status, printed = two.wait(index, timeout=90)
            name = socket.gethostname()
            assert status == 2, printed
            assert printed == (
                "error: The processes of a run must have the same settings:\n"
                f"  config.batch_size: 8 in process 0 ({name}), 16 in process 1 ({name})\n"
            )


def test_an_unreachable_coordinator_is_named_by_the_script(tmp_path):
    port = _free_port()
    command = [
        *(sys.executable, "train.py", "--config=configs/quickstart.py:smoke", f"--workdir={tmp_path / 'run'}"),
        *(f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2", "--process_id=1"),
        "--initialization_timeout=1",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith(f"error: Cannot reach process 0 at 127.0.0.1:{port} within 1 s: Connection refused")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


# ---- the link by itself, several processes played by threads ---------------------------------------------------------


@pytest.fixture
def ended(monkeypatch):
    """Messages of processes that would have been ended."""
    messages = []
    monkeypatch.setattr(host_link, "end_process", lambda message, status: messages.append((message, status)))
    return messages


@contextlib.contextmanager
def _linked(count, *, indices=None, counts=None, fields=None, timeout=5.0, limit=1.0):
    """Links of several processes, or the error that each got instead."""
    port = _free_port()
    server = HostServer(port, count=count, jax_port=1, timeout=timeout, limit=limit)
    indices = indices or list(range(count))
    results = [None] * len(indices)

    def run(place):
        try:
            results[place] = join(
                "127.0.0.1",
                port,
                index=indices[place],
                count=(counts or {}).get(place, count),
                fields=(fields or {}).get(place, {}),
                timeout=timeout,
                limit=limit,
            )
        except HostError as error:
            results[place] = str(error)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(indices))]
    for thread in threads:
        thread.start()
        time.sleep(0.05)  # one after the other, so that messages are always the same
    for thread in threads:
        thread.join(timeout + 5)
    yield results
    for link in results:
        if not isinstance(link, str):
            link.leave()
    server.close()


def _all_at_once(*functions):
    """Results of functions that wait for each other."""
    results = [None] * len(functions)

    def run(place):
        results[place] = functions[place]()

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    return results


def test_two_processes_with_one_number():
    with _linked(3, indices=[0, 1, 1]) as results:
        name = socket.gethostname()
        message = f"Two processes have --process_id=1, on {name} and on {name}. Give each its own, from 0 to 2."
        assert results == [message] * 3


def test_a_process_that_does_not_come():
    with _linked(3, indices=[0, 2], timeout=0.5) as results:
        assert len(set(results)) == 1
        assert "Of 3 processes not all have come within 0.5 s; there are process 0 (" in results[0]
        assert "missing process 1." in results[0]


def test_processes_that_count_differently():
    with _linked(2, counts={1: 3}) as results:
        assert f"--num_processes is 3 in process 1 ({socket.gethostname()}) and 2 in process 0" in results[0]
        assert results[0] == results[1]


def test_settings_that_differ_are_listed_with_host_and_values():
    with _linked(3, fields={0: {"a": 1, "b": [2]}, 1: {"a": 1, "b": [2]}, 2: {"a": 5, "c": None}}) as results:
        assert len(set(results)) == 1
        there = f"process 2 ({socket.gethostname()})"
        for line in (
            f"a: 1 in process 0 (.*), 5 in {there}",
            "b: .2. in .*'.absent.' in",
            "c: '.absent.' in .*None in",
        ):
            assert re.search(line.replace(there, re.escape(there)), results[0])


def test_a_meeting_waits_for_all_and_gives_what_process_0_brings():
    with _linked(3) as links:
        assert _all_at_once(*(lambda link=link: link.meet(link.index * 10 + 7) for link in links)) == [7, 7, 7]
        assert _all_at_once(*(lambda link=link: link.meet("later") for link in links)) == ["later"] * 3


def test_an_error_of_the_runtime_is_laid_to_the_process_that_died(ended):
    with _linked(3) as links:
        links[2]._send = lambda message: None  # it falls silent
        failure = links[1].fail("JaxRuntimeError: connection closed by peer", certain=False)
    assert failure.index == 2
    assert failure.reason.startswith("no sign of life")
    assert {status for _, status in ended} == {1}


@pytest.mark.parametrize("linger", [None, struct.pack("ii", 1, 0)], ids=["closed", "reset"])
def test_a_connection_that_the_death_of_process_0_closes_or_resets_means_its_death(ended, linger):
    with socket.create_server(("127.0.0.1", 0)) as door:
        connection = socket.create_connection(door.getsockname())
        server, _ = door.accept()
    link = host_link.HostLink(connection, index=1, jax_port=1, server_host="first", limit=5.0)
    if linger is not None:  # what the kernel does where bytes were not read
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    server.close()
    link._thread.join(5)
    connection.close()
    assert (link.failure.index, link.failure.host) == (0, "first")
    assert "ended without a word" in ended[0][0]


def test_an_error_of_the_runtime_while_all_others_live_is_its_own(ended):
    with _linked(3, limit=2.0) as links:
        failure = links[1].fail("JaxRuntimeError: out of memory", certain=False)
        time.sleep(0.3)
    assert (failure.index, failure.reason) == (1, "JaxRuntimeError: out of memory")
    assert len(ended) == 2
    assert all("Process 1 on " in message and "out of memory" in message for message, _ in ended)


def test_all_stop_at_a_step_that_none_has_passed():
    with _linked(3) as links:
        stops = [StopRequest(link) for link in links]
        for link, stop, passed in zip(links, stops, (4, 7, 6), strict=True):
            link.begin_loop()
            assert not any(stop.now() for _ in range(passed))
        stops[2]._note(signal.SIGTERM, None)

        def go_on(stop, step):
            while not stop.now():
                step += 1
            return step

        places = zip(stops, (4, 7, 6), strict=True)
        stopped_at = _all_at_once(*(lambda stop=stop, step=step: go_on(stop, step) for stop, step in places))
        assert len(set(stopped_at)) == 1
        assert stopped_at[0] >= 7
        assert all(stop.now() for stop in stops)  # from then on
        assert {stop.signal for stop in stops} == {signal.SIGTERM}


def test_a_stop_that_comes_when_one_is_through_is_dropped():
    with _linked(2) as links:
        for link in links:
            link.begin_loop()
        links[0].end_loop()
        stop = StopRequest(links[1])
        stop._note(signal.SIGTERM, None)
        assert not stop.now()
        time.sleep(0.2)
        assert not stop.now()
        assert stop.signal is None


# ---- flags and environment -------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_cluster_variables(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)


def test_without_flags_there_is_one_process():
    assert find_place() is None
    assert find_place(distributed=False) is None
    assert find_place(coordinator_address="a:1", num_processes=1, process_id=0) is None


def test_a_place_from_flags_and_from_the_environment(monkeypatch):
    place = Place("10.0.0.2", 8476, 4, 3)
    assert find_place(coordinator_address="10.0.0.2:8476", num_processes=4, process_id=3) == place
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.2:8476")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "3")
    assert find_place() == place
    assert find_place(process_id=1) == Place("10.0.0.2", 8476, 4, 1)
    assert find_place(distributed=False) is None
    monkeypatch.setenv("JAX_PROCESS_ID", "three")
    with pytest.raises(HostError, match="JAX_PROCESS_ID must be a whole number; found 'three'"):
        find_place()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"coordinator_address": "a:1"}, "--num_processes and --process_id missing beside --coordinator_address"),
        ({"num_processes": 2, "process_id": 0}, "--coordinator_address missing beside --num_processes and"),
        ({"coordinator_address": "a", "num_processes": 2, "process_id": 0}, "must be HOST:PORT"),
        ({"coordinator_address": "a:1", "num_processes": 2, "process_id": 2}, "found 2 of 2 processes"),
        ({"distributed": True, "num_processes": 2}, "--distributed asks the cluster for everything; leave out --num_"),
        ({"distributed": False, "process_id": 2}, "--nodistributed contradicts --process_id"),
        ({"distributed": True}, "no cluster that JAX knows"),
    ],
)
def test_flags_that_do_not_fit_together(flags, message):
    with pytest.raises(HostError, match=message):
        find_place(**flags)


def test_a_tpu_pod_slice_needs_no_flags(monkeypatch):
    from jax._src import cloud_tpu_init, clusters

    def detect(*_):
        return "10.0.0.9:8482", 4, 2, None

    monkeypatch.setattr(clusters.ClusterEnv, "auto_detect_unset_distributed_params", detect)
    assert find_place() is None  # there is no TPU, so nobody was asked
    assert find_place(distributed=True) == Place("10.0.0.9", 8482, 4, 2)
    monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "_jax_platforms", lambda: "tpu,cpu")
        assert find_place() == Place("10.0.0.9", 8482, 4, 2)
        patch.setattr(distributed, "_jax_platforms", lambda: "cpu")
        assert find_place() is None


def test_more_hosts_than_examples(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 8)
    with pytest.raises(DataError, match=r"'train' has 7 example\(s\) for 8 processes"):
        distributed.check_enough_examples(7, "train")
    distributed.check_enough_examples(8, "train")


def test_strangers_are_turned_away_and_disturb_nobody(capfd):
    port = _free_port()
    server = HostServer(port, count=2, jax_port=1, timeout=10.0, limit=5.0)
    hello = {"index": 0, "count": 2, "host": "x", "fields": {}}
    odd = [b"GET / HTTP/1.1\r\n\r\n", b"[" * 100_000, b"[]", b"5"]
    odd += [
        json.dumps(hello | wrong).encode() for wrong in ({"index": []}, {"index": 7}, {"fields": 5}, {"count": "2"})
    ]
    try:
        for line in odd:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
                stranger.sendall(line + b"\n")
                while stranger.recv(1 << 16):  # a reason perhaps, and the end
                    pass
        links = _all_at_once(
            *(
                lambda index=index: join("127.0.0.1", port, index=index, count=2, fields={}, timeout=10.0, limit=5.0)
                for index in range(2)
            )
        )
        assert [link.index for link in links] == [0, 1]
        for link in links:
            link.leave()
    finally:
        server.close()
    assert "Traceback" not in capfd.readouterr().err
