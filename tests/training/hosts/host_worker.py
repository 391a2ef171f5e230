"""One process of several, as tests start it: python host_worker.py SPEC.json INDEX

The spec has the config, where the processes meet, whether they train or only add numbers, and what goes wrong at which
step. A process that trains to the end writes which examples it was given.
"""

import json
import os
import pathlib
import signal
import sys
import time

import jax
import numpy as np
from jax._src import compilation_cache, compiler

import flax_mnv2.layer_plan
from flax_mnv2.errors import DataError, UserError
from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.training.distributed import Place, session

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def cache_programs():
    """Lets every process keep what it compiles, where JAX writes the programs of process 0 alone."""

    def write(key, seconds, name, backend, executable, *callbacks):  # JAX 0.11 passes none
        if not any(callbacks):
            compilation_cache.put_executable_and_time(key, name, executable, backend, int(seconds))

    compiler._cache_write = write


def make_config(fields):
    config = default_config()
    config.update_from_flattened_dict(
        {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    )
    return config


def record_batches(indices):
    """Notes which examples this process is given to train on."""
    from flax_mnv2.data.loader.batches import BatchIterator

    original = BatchIterator.__next__

    def following(self):
        batch = original(self)
        if "mask" not in batch:
            indices.append(batch["index"].tolist())
        return batch

    BatchIterator.__next__ = following


def go_wrong(kind):
    print(f"fault {time.time()}", flush=True)
    if kind == "user_error":
        raise DataError("Example 'cat.jpg': corrupt image. Replace it.")
    if kind == "exception":
        raise ZeroDivisionError("a bug")
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "term": signal.SIGTERM}[kind])


def train_with_fault(config, workdir, fault):
    from flax_mnv2.training.logging.progress import Progress
    from flax_mnv2.training.loop import train

    original = Progress.advance

    def advance(self):
        original(self)
        if fault and self._title.startswith(fault.get("during", "training")) and self._done == fault["step"]:
            go_wrong(fault["kind"])

    Progress.advance = advance
    train(config, workdir)


def add_with_fault(fault):
    """Sums over all devices, again and again: the shortest program that hangs when somebody is missing."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = jax.NamedSharding(mesh, jax.P("data")), jax.NamedSharding(mesh, jax.P())
    ones = jax.make_array_from_process_local_data(split, np.ones(jax.local_device_count(), np.float32))
    add = jax.jit(jax.numpy.sum, out_shardings=whole)
    for step in range(100_000):
        assert float(add(ones)) == jax.device_count()
        if fault and step == fault["step"]:
            go_wrong(fault["kind"])
        time.sleep(0.005)


def main():
    spec, index = json.loads(pathlib.Path(sys.argv[1]).read_text()), int(sys.argv[2])
    own = spec["own"].get(str(index), {})
    if "block_table" in spec:
        flax_mnv2.layer_plan.BLOCK_TABLE = tuple(map(tuple, spec["block_table"]))
    config = make_config(spec["config"] | own.get("config", {}))
    place = Place("127.0.0.1", spec["port"], spec["count"], index) if spec["count"] > 1 else None
    cache_programs()
    seen = []
    try:
        with session(place, config, timeout=spec["timeout"], limit=spec["limit"]):
            if spec["trains"]:
                record_batches(seen)
                train_with_fault(config, spec["workdir"], own.get("fault"))
                pathlib.Path(f"{sys.argv[1]}.{index}").write_text(json.dumps(seen))
            else:
                add_with_fault(own.get("fault"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
