"""Joins what benchmarks have written into one JSON, and says how near our programs come to the memory's speed.

``python -m benchmarks.roofline FOLDER`` measures what a copy of a large array moves a second. Of each of our compiled
programs in FOLDER/*.json it prints the bytes that XLA counts (``moved MiB``; what a fusion reads twice counts twice) a
second of the program's median time, as a share of that. Far below 1, something else than memory holds it up.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time

from benchmarks import harness

COPY_MIB = {"cpu": 256, "gpu": 4096, "tpu": 1024}
QUICK_MIB = 64
NAME = "roofline"


def main(argv: list[str] | None = None) -> None:
    """Measures the copy, and reports."""
    arguments = harness.parse_arguments(NAME, __doc__, add_options, argv)
    records = {path.stem: json.loads(path.read_text()) for path in sorted(arguments.folder.glob("*.json"))}
    records.pop(NAME, None)
    speed = copy_speed(quick=arguments.quick, repeats=arguments.repeats or (5 if arguments.quick else 20))
    rows = [{"work": "copy of a large array", "case": "jax", "GB/s": speed / 1e9}]
    for record in records.values():
        rows += [_row(row, speed) for row in record["rows"] if row.get("moved MiB")]
    settings = {**vars(arguments), "records": records}
    harness.report(NAME, rows, settings=settings, json_path=arguments.folder / f"{NAME}.json")


def add_options(parser: argparse.ArgumentParser) -> None:
    """This benchmark's own options."""
    parser.add_argument(
        "folder", type=pathlib.Path, metavar="FOLDER", help="of the JSON of benchmarks; gets roofline.json"
    )


def copy_speed(*, quick: bool, repeats: int) -> float:
    """Bytes a second, read and written, of a program that adds 1 to an array larger than the caches."""
    import jax
    import jax.numpy as jnp

    mib = QUICK_MIB if quick else COPY_MIB.get(jax.default_backend(), QUICK_MIB)
    array = jnp.zeros(mib * 2**20 // 4, jnp.float32)
    step = jax.jit(lambda array: array + 1, donate_argnums=0)
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        array = jax.block_until_ready(step(array))
        seconds.append(time.perf_counter() - start)
    return 2 * array.nbytes / statistics.median(seconds[2:])


def _row(row: harness.Row, speed: float) -> harness.Row:
    moved = row["moved MiB"] * 2**20 / (row["median ms"] / 1e3)
    columns = {name: row[name] for name in ("work", "case", "median ms", "moved MiB")}
    return {**columns, "GB/s": moved / 1e9, "of the copy": moved / speed}


if __name__ == "__main__":
    main()
