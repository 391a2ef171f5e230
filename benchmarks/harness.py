"""Times cases alternately in one run, and reports them as a Markdown table and as JSON.

A benchmark is a module run from the project's root, ``python -m benchmarks.NAME``. Its parts, in order::

    arguments = harness.parse_arguments("inference", __doc__, add_options)
    seconds = harness.alternate({"ours": ours, "peer": peer}, repeats=20)
    rows = harness.summarise(seconds, work="batch 16", items=16, unit="images")
    harness.report("inference", rows, settings=vars(arguments), json_path=arguments.json)

Rows are dicts from column to value, so a benchmark may add columns, or report figures that are no times.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAUSE_S = 0.05  # worker threads of OpenMP and ONNX Runtime spin for milliseconds after their last work
PACKAGES = (
    *("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "tensorflow-datasets"),
    *("torch", "torchvision", "timm", "transformers", "onnx", "onnxruntime", "tensorflow", "tensorflow-cpu"),
    *("opencv-python-headless", "pillow", "pillow-simd"),
)
ENVIRONMENT = (
    *("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR", "JAX_NUM_CPU_DEVICES"),
    *("JAX_DEFAULT_MATMUL_PRECISION", "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION"),
    *("GLIBC_TUNABLES", "LD_PRELOAD", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS"),
    *("CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE"),
)

Row = dict[str, Any]


# ---- command line --------------------------------------------------------------------------------------


def parse_arguments(
    name: str,
    description: str | None,
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    argv: list[str] | None = None,
) -> argparse.Namespace:
    """Reads the options that all benchmarks share, and those that ``add_options(parser)`` adds.

    Call it before JAX or PyTorch is imported: ``--cores`` holds for libraries that are loaded later.

    Args:
      name: of the benchmark; the JSON goes to ``runs/benchmarks/NAME.json`` by default.
      description: shown by ``--help``; the benchmark's docstring.
      add_options: called with the parser.
      argv: arguments; None takes the command line.

    Returns:
      ``quick`` (bool), ``repeats`` (int or None), ``json`` (path), ``peers`` (tuple of names, or None for all),
      ``cores`` (int or None), and the benchmark's own.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.add_argument("--quick", action="store_true", help="less work and fewer repeats: about a minute")
    parser.add_argument("--repeats", type=positive, metavar="N", help="rounds; several timings of each case in a round")
    default = pathlib.Path("runs/benchmarks") / f"{name}.json"
    parser.add_argument("--json", type=pathlib.Path, default=default, metavar="PATH", help=f"default {default}")
    parser.add_argument("--peers", type=names, metavar="A,B", help="only these peers; an empty string for none")
    parser.add_argument(
        "--cores", type=positive, metavar="N", help="run on N cores, so that every library has as many threads"
    )
    arguments = parser.parse_args(argv)
    if arguments.cores:
        available = sorted(os.sched_getaffinity(0))
        if arguments.cores > len(available):
            parser.error(f"--cores: there are {len(available)}")
        os.sched_setaffinity(0, available[: arguments.cores])
    return arguments


def positive(text: str) -> int:
    """An argparse type: an integer from 1."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; found {value}")
    return value


def names(text: str) -> tuple[str, ...]:
    """An argparse type: names separated by commas."""
    return tuple(filter(None, text.split(",")))


def positives(text: str) -> tuple[int, ...]:
    """An argparse type: integers from 1, separated by commas."""
    return tuple(map(positive, names(text)))


def skipped(case: str, reason: object) -> None:
    """Prints that a case is left out, and why, on one line."""
    text = str(reason) or type(reason).__name__
    print(f"skipped {case}: {text.splitlines()[0][:200]}", flush=True)


def build(makers: Mapping[str, Callable[[], Callable[[], object]]]) -> dict[str, Callable[[], object]]:
    """Builds cases one by one and calls each once; one that fails is left out, with one printed line.

    Args:
      makers: functions by name that load, convert and compile, and return the case for ``alternate``.
    """
    cases = {}
    for name, make in makers.items():
        try:
            case = make()
            case()
            cases[name] = case
        except Exception as error:  # whatever a peer's library raises where it does not fit this machine
            skipped(name, f"{type(error).__name__}: {error}")
    return cases


# ---- timing --------------------------------------------------------------------------------------------


def alternate(
    cases: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warmup: int = 2,
    calls: int = 3,
    pause: float = PAUSE_S,
) -> dict[str, list[float]]:
    """Times the cases in turn, round after round, so that whatever else the machine does hits all alike.

    In its turn a case is called several times, the first time without a clock: as in a training run, a call follows
    one of its own kind, and finds the memory that the last one gave back. On a virtual machine memory that another
    library has just freed can cost more than the work.

    Args:
      cases: functions by name. Each returns only when its work is done: it blocks until its arrays are ready and its
        device is idle. All do the same work. Cases that could not be built are not here; ``build`` leaves them out.
      repeats: rounds that are timed.
      warmup: rounds before, not timed: they compile, tune and fill caches.
      calls: timings in a turn.
      pause: seconds of rest before each turn, in which threads of the previous case go to sleep.

    Returns:
      Wall-clock seconds of each case, ``repeats * calls`` figures.
    """
    for _ in range(warmup):
        for case in cases.values():
            case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            time.sleep(pause)
            case()
            for _ in range(calls):
                start = time.perf_counter()
                case()
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summarise(
    seconds: Mapping[str, list[float]],
    *,
    work: str = "",
    ours: str = "ours",
    items: float | None = None,
    unit: str = "images",
) -> list[Row]:
    """One row for each case.

    Args:
      seconds: as ``alternate`` returns them.
      work: what all cases did, such as ``"batch 16"``; the first column.
      ours: name of the case that the others are compared with; without it there are no ratios.
      items: how much each timing did, for the throughput.
      unit: of ``items``.

    Returns:
      Rows with ``work``, ``case``, ``median ms``, ``quartiles ms``, ``min ms``, ``<unit>/s``, ``ratio`` and the raw
      ``seconds``. The ratio is the case's median time over ours: above 1, we are faster.
    """
    rows = []
    for case, times in seconds.items():
        median = statistics.median(times)
        low, _, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else (median,) * 3
        row: Row = {
            "work": work,
            "case": case,
            "median ms": 1e3 * median,
            "quartiles ms": f"{significant(1e3 * low)} – {significant(1e3 * high)}",
            "min ms": 1e3 * min(times),
        }
        if items is not None:
            row[f"{unit}/s"] = items / median
        if ours in seconds:
            row["ratio"] = median / statistics.median(seconds[ours])
        rows.append({**row, "seconds": list(times)})
    return rows


# ---- reports -------------------------------------------------------------------------------------------


def report(name: str, rows: list[Row], *, settings: Mapping[str, Any], json_path: str | os.PathLike) -> None:
    """Prints the rows as a Markdown table, and writes them as JSON with what they depend on.

    Args:
      name: of the benchmark.
      rows: from column to value. Lists and dicts, raw seconds among them, are for the JSON only.
      settings: what was measured, JSON or turned into text.
      json_path: written, with its folders.
    """
    record = {"benchmark": name, "settings": dict(settings), "rows": rows, **surroundings()}
    path = pathlib.Path(json_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    note = "; ratio: the case's time over ours, above 1 we are faster" if any("ratio" in row for row in rows) else ""
    print(f"\n{describe_machine(record['machine'])}{note}\n\n{markdown_table(rows)}\n\nwritten: {path}", flush=True)


def markdown_table(rows: Iterable[Row]) -> str:
    """A table with the columns of all rows, in the order in which they first occur; numbers to three digits."""
    shown = [{key: value for key, value in row.items() if not isinstance(value, list | dict)} for row in rows]
    columns = [column for column in dict.fromkeys(key for row in shown for key in row) if any(_of(shown, column))]
    numeric = {column: all(isinstance(value, int | float) for value in _of(shown, column)) for column in columns}
    lines = [columns, ["---:" if numeric[column] else "---" for column in columns]]
    lines += [[_cell(row.get(column)) for column in columns] for row in shown]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def significant(value: float, digits: int = 3) -> str:
    """``value`` to so many significant digits, without an exponent; integers of more digits stay whole."""
    if value == 0 or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".rstrip(".") if abs(value) >= 1e-4 else f"{value:.{digits - 1}e}"


def _of(rows: list[Row], column: str) -> list[Any]:
    return [row[column] for row in rows if row.get(column) not in (None, "")]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return significant(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value).replace("|", "\\|")


# ---- surroundings --------------------------------------------------------------------------------------


def surroundings() -> dict[str, Any]:
    """What a figure depends on beside its settings: versions, machine, date, command, commit, environment."""
    return {
        "versions": versions(),
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }


def versions() -> dict[str, str]:
    """Python's and those of the installed among ``PACKAGES``."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """CPU by name, cores that this process may use, memory in GiB, and GPUs with driver and memory where there are."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(int((_field("/proc/meminfo", "MemTotal") or "0").split()[0]) / 2**20, 1),
        "system": f"{platform.system()} {platform.release()}",
        "gpus": _output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"),
    }


def describe_machine(found: Mapping[str, Any]) -> str:
    """One line for people."""
    gpus = f"; {', '.join(found['gpus'])}" if found["gpus"] else ""
    return f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB{gpus}"


def commit() -> str | None:
    """The commit that is checked out, marked where files differ from it; None outside of a repository."""
    head = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain")
    return f"{head[0]}{' with changes' if changed else ''}" if head else None


def _field(path: str, name: str) -> str | None:
    """The first ``name: value`` of a file in /proc, where there is one."""
    try:
        lines = pathlib.Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def _output(*command: str) -> list[str]:
    """The lines that a command prints; none where it fails or is not installed."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in result.stdout.splitlines() if line.strip()]
