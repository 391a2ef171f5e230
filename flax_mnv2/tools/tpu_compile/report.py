"""What a compiled training step says of itself: memory, traffic, collectives, and the least time it can take."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from flax_mnv2.tools.tpu_compile import hlo
from flax_mnv2.tools.tpu_compile.abstract_step import AbstractStep
from flax_mnv2.tools.tpu_compile.slices import Chip, Slice

_STATE_TITLES = {
    "params": "parameters",
    "collections": "batch norm statistics",
    "opt_state": "optimizer state",
    "ema": "moving averages",
    "step": "step",
}
_BOUND_TITLES = {"hbm": "HBM traffic", "flops": "FLOPs", "interconnect": "interconnect"}


def make_report(step: AbstractStep, compiled: jax.stages.Compiled, target: Slice) -> dict[str, Any]:
    """Returns memory, traffic and bounds of a compiled step, for JSON.

    Bytes, seconds and operations are those of one chip in one step:

    - ``memory``: ``state`` by part and ``batch`` (elements alone), ``padding`` (what their layout adds),
      ``temporaries``, ``program``, ``total``; with a chip ``hbm`` and ``fits``;
    - ``collectives``: by kind ``count``, ``bytes`` of the results and ``largest``;
    - ``work``: ``hbm_bytes`` and ``flops``, each also by image; ``images``;
    - ``bounds``, on a TPU: seconds of each part, ``binding``, ``step_seconds``, and images a second by ``chip`` and
      ``slice``, which no run can exceed.
    """
    images, num_chips = step.batch["image"].shape[0] // len(target.devices), len(target.devices)
    module = hlo.Module(compiled.as_text())
    collectives = module.collectives()
    hbm_bytes, flops = module.hbm_bytes(), compiled.cost_analysis()["flops"]
    if step.parts in module.loops():
        flops *= step.parts  # XLA counts the inside of a loop once; what is outside, the update, is nothing beside it
    report: dict[str, Any] = {
        "slice": target.name,
        "chips": num_chips,
        "hosts": target.num_hosts,
        "memory": memory(step, compiled),
        "collectives": {
            kind: {"count": len(sizes), "bytes": sum(sizes), "largest": max(sizes)}
            for kind, sizes in sorted(collectives.items())
        },
        "work": {
            "images": images,
            "hbm_bytes": hbm_bytes,
            "hbm_bytes_per_image": hbm_bytes / images,
            "flops": flops,
            "flops_per_image": flops / images,
        },
    }
    if target.chip is not None:
        used = report["memory"]
        used |= {"hbm": target.chip.hbm_bytes, "fits": used["total"] <= target.chip.hbm_bytes}
        seconds = lower_bounds(
            target.chip, hbm_bytes=hbm_bytes, flops=flops, collectives=collectives, num_chips=num_chips
        )
        binding = max(seconds, key=seconds.__getitem__)
        rate = images / seconds[binding]
        report["bounds"] = {
            "seconds": seconds,
            "binding": binding,
            "step_seconds": seconds[binding],
            "images_per_second": {"chip": rate, "slice": rate * num_chips},
        }
    return report


def memory(step: AbstractStep, compiled: jax.stages.Compiled) -> dict[str, Any]:
    """Returns bytes of one device, as ``make_report`` describes; what a step reuses of its arguments counts once."""
    sizes = compiled.memory_analysis()
    (state_shardings, batch_shardings), _ = compiled.input_shardings
    state = {
        field.name: _bytes(getattr(step.state, field.name), getattr(state_shardings, field.name))
        for field in dataclasses.fields(step.state)
    }
    batch = _bytes(step.batch, batch_shardings)
    arguments = sizes.argument_size_in_bytes
    results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    parts = {
        "padding": arguments - sum(state.values()) - batch,
        "results": results,
        "temporaries": sizes.temp_size_in_bytes,
        "program": sizes.generated_code_size_in_bytes,
    }
    return {"state": state, "batch": batch, **parts, "total": sum(state.values()) + batch + sum(parts.values())}


def lower_bounds(
    chip: Chip, *, hbm_bytes: float, flops: float, collectives: Mapping[str, Sequence[int]], num_chips: int
) -> dict[str, float]:
    """Returns the seconds that ``hbm``, ``flops`` and ``interconnect`` of a step take at least, were the others free.

    Nothing can be faster than the published bandwidths and the peak; latencies, and parts that do not overlap, come on
    top. Bytes and operations are those of one chip; ``collectives`` are as ``hlo.Module.collectives`` gives them.
    """
    return {
        "hbm": hbm_bytes / chip.hbm_bandwidth,
        "flops": flops / chip.peak_flops,
        "interconnect": sent_bytes(collectives, num_chips) / chip.link_bandwidth,
    }


def sent_bytes(collectives: Mapping[str, Sequence[int]], num_chips: int) -> float:
    """Returns the bytes that each chip must send at least for these collectives, whatever the algorithm.

    Of n chips that sum B bytes each sends (n - 1) / n of B to reduce its part and as much to hand it out.
    """
    others = (num_chips - 1) / num_chips
    fractions = {
        "all-reduce": 2 * others,
        "all-gather": others,
        "reduce-scatter": num_chips * others,  # its result is an n-th of what is summed
        "all-to-all": others,
        "collective-permute": 1.0,
    }
    return sum(fractions[kind] * sum(sizes) for kind, sizes in collectives.items())


def format_report(report: dict[str, Any], *, quick: bool = False) -> str:
    """Returns the report for a terminal; ``quick`` says that the compiler was asked for less effort."""
    blocks = [_memory_block(report["memory"]), _collectives_block(report["collectives"]), _work_block(report["work"])]
    if "bounds" in report:
        blocks.append(_bounds_block(report, quick=quick))
    return "\n\n".join(blocks)


def _memory_block(memory: dict[str, Any]) -> str:
    rows = [(_STATE_TITLES.get(name, name), size) for name, size in memory["state"].items() if size]
    rows += [("batch", memory["batch"]), ("padding of their layout", memory["padding"])]
    rows += [(name, memory[name]) for name in ("results", "temporaries", "program")]
    lines = [f"  {name:<24}{mebibytes(size):>14}" for name, size in rows]
    total = f"  {'total':<24}{mebibytes(memory['total']):>14}"
    if "hbm" in memory:
        fraction = memory["total"] / memory["hbm"]
        total += f" of {memory['hbm'] / 2**30:.0f} GiB ({fraction:.0%}): {'fits' if memory['fits'] else 'DOES NOT FIT'}"
    return "\n".join(["Memory per chip", *lines, total])


def _collectives_block(collectives: dict[str, Any]) -> str:
    lines = [
        f"  {kind:<24}{found['count']:>6},  {found['bytes'] / 1e6:.2f} MB in all, the largest "
        f"{found['largest'] / 1e6:.2f} MB"
        for kind, found in collectives.items()
    ]
    return "\n".join(["Collectives per step", *(lines or ["  none"])])


def _work_block(work: dict[str, Any]) -> str:
    rows = (("HBM traffic", "hbm_bytes", 1e9, "GB", 1e6, "MB"), ("FLOPs", "flops", 1e9, "G", 1e9, "G"))
    lines = [
        f"  {title:<24}{work[name] / large:>10.3f} {unit}, {work[f'{name}_per_image'] / small:.3g} {per_image} an image"
        for title, name, large, unit, small, per_image in rows
    ]
    return "\n".join([f"Work per chip, {work['images']} images a step", *lines])


def _bounds_block(report: dict[str, Any], *, quick: bool) -> str:
    bounds = report["bounds"]
    lines = [
        f"  {_BOUND_TITLES[name]:<24}{1e3 * seconds:>10.3f} ms{'  <- binds' if name == bounds['binding'] else ''}"
        for name, seconds in bounds["seconds"].items()
    ]
    rates = bounds["images_per_second"]
    lines = [
        "Least time of a step, from published peak figures",
        *lines,
        f"  so at most {rates['chip']:,.0f} images/s a chip and {rates['slice']:,.0f} on the slice",
        "  This bounds a run and does not predict it: latencies, imperfect overlap and the input are left out.",
        "  Operands are counted whole, also where an instruction reads a part.",
    ]
    if quick:
        lines += [
            "  --quick: nothing is kept on the chip between instructions, so HBM traffic and its time are too high;",
            "  the default effort may allow more images/s than stated. Memory, FLOPs and collectives are near.",
        ]
    return "\n".join(lines)


def mebibytes(size: float) -> str:
    """Returns a size for a reader."""
    return f"{size / 2**20:,.2f} MiB"


def _bytes(shapes: Any, shardings: Any) -> int:
    """Returns the bytes of the elements that one device holds of a tree of arrays."""
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    )
