"""Compiles a run's training step for a TPU slice, without a TPU, and prints what it needs and can reach at best:

  PYTHONPATH=/tmp/tpu_compiler python -m flax_mnv2.tools.tpu_compile --config configs/seg_voc.py \\
    --topology v5e:4x4 --config.batch_size=256 --config.eval.batch_size=16 --config.dtype=bfloat16

Any field of the config can be set as for train.py. No data is read and no weights are loaded. The default effort of the
compiler takes five minutes or more of two cores; --quick one or two. --topology cpu:4 tries it without libtpu.
"""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from flax_mnv2.errors import ConfigError, DataError, UserError
from flax_mnv2.tools.tpu_compile.abstract_step import AbstractStep, lower_train_step
from flax_mnv2.tools.tpu_compile.report import format_report, make_report, mebibytes
from flax_mnv2.tools.tpu_compile.slices import Slice, open_slice

_QUICK = {"exec_time_optimization_effort": -1.0}


class DoesNotFitError(UserError):
    """The step needs more memory than a chip has."""


def check(
    config: ml_collections.ConfigDict, topology: str, *, num_classes: int = 0, quick: bool = False
) -> dict[str, Any]:
    """Compiles the step for a slice, printing as it goes.

    Returns what ``report.make_report`` gives, with ``config`` (its changes included), ``quick`` and the seconds that
    lowering and compiling took. Raises errors as ``open_slice`` and ``lower_train_step``, and a DoesNotFitError where
    the compiler found no program that fits.
    """
    target = open_slice(topology)
    start = time.perf_counter()
    step = lower_train_step(config, target.devices, num_classes=num_classes)
    lowering = time.perf_counter() - start
    print(describe(config, step, target))
    print(f"lowered in {lowering:.0f} s; compiling …", flush=True)
    start = time.perf_counter()
    compiled = compile_step(step, target, config, quick=quick)
    compiling = time.perf_counter() - start
    print(f"compiled in {compiling:.0f} s\n", flush=True)
    report = make_report(step, compiled, target)
    print(format_report(report, quick=quick and target.chip is not None), flush=True)
    return {
        **report,
        "quick": quick,
        "lowering_seconds": lowering,
        "compiling_seconds": compiling,
        "config": config.to_dict(),
    }


def compile_step(
    step: AbstractStep, target: Slice, config: ml_collections.ConfigDict, *, quick: bool
) -> jax.stages.Compiled:
    """Compiles; raises a DoesNotFitError that says what to change where the chip is too small."""
    try:
        return step.lowered.compile(compiler_options=_QUICK if quick and target.chip is not None else None)
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        raise DoesNotFitError(does_not_fit(text, step, target, config)) from None


def does_not_fit(text: str, step: AbstractStep, target: Slice, config: ml_collections.ConfigDict) -> str:
    """Returns the message for a program that the compiler could not fit, from the compiler's."""
    images = config.batch_size // len(target.devices)
    changes = []
    if images > 1:
        changes.append(f"a smaller config.batch_size ({images} images a chip now) or a larger slice")
        changes.append("config.gradient_accumulation_steps above 1")
    if config.dtype != "bfloat16":
        changes.append("config.dtype=bfloat16")
    if not config.shard_optimizer_state and config.parallel == "jit" and config.batch_norm.sync:
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(step.state.opt_state))
        saved = size * (1 - 1 / len(target.devices))
        changes.append(f"config.shard_optimizer_state=True (saves at most {mebibytes(saved)})")
    changes += [f"a smaller config.data.{name}" for name in ("crop_size", "train_size") if name in config.data]
    found = next((line.strip() for line in text.splitlines() if "Used" in line and "hbm" in line), text.splitlines()[0])
    found = found.removeprefix("RESOURCE_EXHAUSTED: ")
    return f"The step does not fit on a chip of {target.name}: {found} What helps: {'; '.join(changes)}."


def describe(config: ml_collections.ConfigDict, step: AbstractStep, target: Slice) -> str:
    """Returns what is compiled, and for what, in two lines."""
    images, (_, height, width, _) = config.batch_size // len(target.devices), step.batch["image"].shape
    statistics = "frozen" if config.freeze_batch_norm else "over all chips" if config.batch_norm.sync else "per chip"
    chip = target.chip.name if target.chip else "CPU device"
    return (
        f"MobileNetV2 {config.model.depth_multiplier:g}, {config.task}, {step.num_labels} classes, {height}×{width}, "
        f"{config.dtype}, {config.optimizer.name}, {config.parallel}, batch norm {statistics}\n"
        f"{target.name}: {len(target.devices)} × {chip}, {target.num_hosts} host(s); batch {config.batch_size} = "
        f"{len(target.devices)} × {images} images"
    )


def define_flags() -> None:
    """Defines the command line; called by the command alone, since flags are global."""
    config_flags.DEFINE_config_file("config", None, "Recipe to compile.", lock_config=True)
    flags.DEFINE_string("topology", None, "Slice, such as v5e:16x16, v4:2x2x4 or cpu:4.")
    flags.DEFINE_bool("quick", False, "Least effort of the compiler: a minute or two, HBM traffic too high.")
    flags.DEFINE_integer("num_classes", 0, "Classes of data whose name does not say it.", lower_bound=0)
    flags.DEFINE_string("json", "", "File for the same figures as JSON.")
    flags.mark_flags_as_required(["config", "topology"])


def main(_: Sequence[str]) -> None:
    """Checks, and writes the JSON."""
    values = flags.FLAGS
    path = pathlib.Path(values.json).expanduser() if values.json else None
    if path is not None and not path.parent.is_dir():
        raise ConfigError(f"--json: there is no folder {path.parent}; make it first, or name another file.")
    report = check(values.config, values.topology, num_classes=values.num_classes, quick=values.quick)
    if path is not None:
        try:
            path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(f"Cannot write {path}: {error.strerror}.") from None
        print(f"\nwritten: {path}")
