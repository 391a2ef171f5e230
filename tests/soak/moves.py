"""Runs moved between devices, modes and workers, and a long one."""

import itertools
import json
import random

import harness
import remains
from harness import run
from rows import Row, Soak, say


def elastic_batches(soak: Soak) -> list[Row]:
    """The global batches for every number of processes and workers: indices and pixels."""
    row = Row("1, 2, 4 processes, 0 to 3 workers, from steps 0 and 5: global batches")
    for variant in ("segmentation", "classification"):
        config = soak.data.config(variant)
        for start in (0, 5):
            right = harness.global_batches(config, processes=1, workers=0, start_step=start)
            for processes, workers in ((1, 1), (1, 2), (1, 3), (2, 0), (2, 2), (4, 0)):
                found = harness.global_batches(config, processes=processes, workers=workers, start_step=start)
                row.tried += 1
                pairs = zip(right, found, strict=True)
                if any(one[name].tobytes() != other[name].tobytes() for one, other in pairs for name in one):
                    row.lost.append(f"{variant}: {processes} processes, {workers} workers from {start}")
            say(f"batches of {variant} from step {start}: {len(row.lost)} of {row.tried} differ")
    row.measured = f"{harness.BATCHES} batches each, indices, labels and pixels the same bit for bit"
    return [row]


def elastic(soak: Soak) -> list[Row]:
    """A run moved between devices, modes and workers, by SIGTERM; its arrays agree to rounding."""
    row, rng, largest = Row("moved between 1, 2, 4 devices, jit and pmap, 0 to 3 workers"), random.Random(17), 0.0
    folder = soak.place("elastic")
    flags = [*soak.data.flags("plain"), "--config.num_steps=12", "--config.eval_every_steps=12"]
    flags += ["--config.optimizer.learning_rate=0.001"]  # so that rounding stays rounding
    wide = {"float64": True}  # nothing but the weights, which are float32, rounds visibly
    run("train.py", *flags, f"--workdir={folder / 'whole'}", **wide)
    right = remains.arrays(folder / "whole", 12)
    for number in range(soak.scaled(3)):
        workdir = folder / str(number)
        for step in (3, 6, 9, None):
            devices, mode, workers = rng.choice((1, 2, 4)), rng.choice(("jit", "pmap")), rng.randrange(4)
            place = (f"--config.parallel={mode}", f"--config.data.num_workers={workers}", f"--workdir={workdir}")
            fault = {"fault": {"signal": "SIGTERM", "during": "training", "at": step}} if step else {}
            run("train.py", *flags, *place, devices=devices, **wide, expect=143 if step else 0, **fault)
            say(f"elastic: {mode} on {devices}, {workers} workers, to step {step or 12}")
        row.tried += 1
        found = remains.arrays(workdir, 12)
        worst = max((_relative(found[name], right[name]), name) for name in right if not name.startswith("training"))
        say(f"elastic: largest difference {worst[0]:.1e} of {worst[1]}")
        largest = max(largest, worst[0])
        if not worst[0] < 1e-4:  # another batch would change weights by ten steps of 0.001
            row.lost.append(f"arrays differ by {worst}")
    row.measured = f"largest difference of weights, statistics and EMA {largest:.1e} of an array's largest value"
    return [row]


def _relative(one, other) -> float:
    return float(abs(one - other).max() / max(abs(other).max(), 0.1))  # biases begin at 0


def long_run(soak: Soak) -> list[Row]:
    """3,000 steps: memory, open files, threads, time of a step, size of the logs."""
    folder, steps = soak.place("long"), 60 * soak.times
    flags = [*soak.data.flags("plain"), f"--workdir={folder / 'run'}", f"--config.num_steps={steps}"]
    flags += ["--config.log_every_steps=20", "--config.eval_every_steps=500", "--config.checkpoint.every_steps=100"]
    run("train.py", *flags, samples=str(folder / "samples"), sample_every=20)
    sizes = [json.loads(line) for line in (folder / "samples").read_text().splitlines()]
    settled = [size for size in sizes if size["step"] > steps / 5]
    growth = remains.slope(settled, "rss_mb", per=1000)
    third = len(sizes) // 3
    early, late = (_seconds_per_step(part) for part in (sizes[third // 4 : third], sizes[-third:]))
    more = {name: settled[-1][name] - settled[0][name] for name in ("open_files", "threads", "arrays", "objects")}
    written = {name: remains.size_of(folder / "run" / name) / steps for name in ("metrics.jsonl", "tensorboard")}
    row = Row(f"a run of {steps:,} steps, a checkpoint every 100, an evaluation every 500", 1)
    level = max(more["open_files"], more["threads"], more["arrays"]) <= 2 and more["objects"] < steps
    if growth > 20 or not level or late > 1.5 * early:
        row.lost.append(str(sizes))
    row.measured = (
        f"RSS {settled[0]['rss_mb']:.0f} to {settled[-1]['rss_mb']:.0f} MB, {growth:+.1f} MB per 1,000 steps; "
        f"open files {more['open_files']:+d} ({settled[-1]['open_files']}), threads {more['threads']:+d} "
        f"({settled[-1]['threads']}), arrays {more['arrays']:+d}, Python objects {more['objects']:+d} "
        f"({settled[-1]['objects']:,}); step {1000 * early:.1f} ms in the first third, {1000 * late:.1f} in the last; "
        f"bytes per step: metrics {written['metrics.jsonl']:.0f}, events {written['tensorboard']:.0f}"
    )
    return [row]


def _seconds_per_step(samples) -> float:
    """Median over the intervals between samples, so that saves and evaluations do not count."""
    rates = sorted((b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in itertools.pairwise(samples))
    return rates[len(rates) // 2]
