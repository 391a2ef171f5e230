"""Where a process stands among others: from flags, from the environment, from a cluster; and contradictions."""

import socket

import jax
import pytest

from flax_mnv2.errors import ConfigError
from flax_mnv2.training.cli import find_place
from flax_mnv2.training.multihost import Place


@pytest.fixture(autouse=True)
def no_cluster_variables(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)


def test_without_flags_there_is_one_process():
    assert find_place() is None
    assert find_place(distributed=False) is None
    assert find_place(coordinator_address="a:1", num_processes=1, process_id=0) is None


def test_a_place_from_flags_and_from_the_environment(monkeypatch):
    place = Place("10.0.0.2:8476", 4, 3)
    assert find_place(coordinator_address="10.0.0.2:8476", num_processes=4, process_id=3) == place
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.2:8476")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "3")
    assert find_place() == place
    assert find_place(process_id=1) == Place("10.0.0.2:8476", 4, 1)
    assert find_place(distributed=False) is None
    monkeypatch.setenv("JAX_PROCESS_ID", "three")
    with pytest.raises(ConfigError, match="JAX_PROCESS_ID must be a whole number; found 'three'"):
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
    with pytest.raises(ConfigError, match=message):
        find_place(**flags)


def test_a_port_in_use():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Process 0 cannot listen on port {port} of this machine"):
            find_place(coordinator_address=f"127.0.0.1:{port}", num_processes=2, process_id=0)
        assert find_place(coordinator_address=f"127.0.0.1:{port}", num_processes=2, process_id=1)


@pytest.fixture
def platforms():
    """What JAX is told to run on, restored at the end."""
    told = jax.config.jax_platforms
    yield lambda names: jax.config.update("jax_platforms", names)
    jax.config.update("jax_platforms", told)


def test_a_tpu_pod_slice_needs_no_flags_and_other_clusters_need_one(monkeypatch, platforms):
    from jax._src import cloud_tpu_init

    for name in ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID", "STEP_NUM_NODES"):
        monkeypatch.setenv(f"SLURM_{name}", "1")
    platforms("tpu,cpu")
    assert find_place() is None  # there is no TPU, so nobody is asked
    assert find_place(distributed=True) == Place()
    monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
    assert find_place() == Place()
    platforms("cpu")
    assert find_place() is None


def test_a_cluster_that_does_not_answer(monkeypatch):
    from jax._src.clusters import SlurmCluster

    def fails():
        raise OSError("no route to the metadata server")

    monkeypatch.setattr(SlurmCluster, "is_env_present", fails)
    with pytest.raises(ConfigError, match=r"does not answer \(OSError: no route .* or --nodistributed"):
        find_place(distributed=True)
