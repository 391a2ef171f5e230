"""Storage that does not answer ends a run with one message, never without end."""

import subprocess
import sys
import time

SAVES = """
import pathlib, sys, time
import jax.numpy as jnp
from orbax.checkpoint import AsyncCheckpointer
from flax_mnv2.checkpoint.run import Checkpoints
from flax_mnv2.training.faults.watchdog import ends_within
from flax_mnv2.training.state import TrainState

AsyncCheckpointer.save = lambda *_, **__: None
AsyncCheckpointer.wait_until_finished = lambda self: time.sleep(60)
state = TrainState(step=jnp.asarray(6), params={"a": jnp.ones(3)}, collections={}, opt_state={}, ema=None)
with Checkpoints(pathlib.Path(sys.argv[1]), timeout=0.5, limit=ends_within) as checkpoints:
    checkpoints.save(6, state.to_items(), {"config": {}, "model": {}})
    print("trains on", flush=True)
"""


def test_a_save_that_hangs_ends_the_process_and_says_what_it_waited_for(tmp_path):
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", SAVES, tmp_path], capture_output=True, text=True, timeout=50)
    assert time.monotonic() - began < 40
    assert ended.returncode == 1, ended.stderr
    assert ended.stdout == "trains on\n"
    [message] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert f"Saving step 6 in {tmp_path} has taken 0.5 s" in message
    assert "Traceback" not in ended.stderr
