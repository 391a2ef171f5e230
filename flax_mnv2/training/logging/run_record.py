"""Where and on what a run ran: noted in its workdir at each start, for the report on it."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax

from flax_mnv2.data.datasets.records import Dataset
from flax_mnv2.errors import ConfigError
from flax_mnv2.files import write_text
from flax_mnv2.training.workdir import read_object, writing_in
from flax_mnv2.version import __version__

RECORD_NAME = "run.json"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "tensorflow-datasets")
_MAX_STARTS = 20  # the newest; a run on machines that come and go may have hundreds
_GIT_SECONDS = 5.0
_SOURCE = pathlib.Path(__file__).resolve().parents[3]


def record_start(folder: pathlib.Path, dataset: Dataset, *, step: int) -> None:
    """Adds to ``run.json`` that training begins, or goes on, at ``step``, and what its data set is; process 0 does it.

    The file has ``starts``, the newest last, and ``data``. A DataError where it cannot be written.
    """
    if jax.process_index() != 0:
        return
    path = folder / RECORD_NAME
    try:
        earlier = (read_object(path) or {}).get("starts")
    except ConfigError:  # damaged; the run does not need it
        earlier = None
    starts = [*(earlier if isinstance(earlier, list) else ()), environment(step)][-_MAX_STARTS:]
    with writing_in(folder):
        write_text(path, json.dumps({"data": _described(dataset), "starts": starts}, indent=2) + "\n")


def environment(step: int) -> Mapping[str, Any]:
    """Returns what a start at ``step`` runs on, JSON: time, host, devices, versions, commit, command."""
    devices = jax.devices()
    return {
        "step": step,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "system": f"{platform.platform()}, {os.cpu_count()} CPUs",
        "devices": f"{len(devices)} {devices[0].platform}: {', '.join(sorted({each.device_kind for each in devices}))}",
        "processes": jax.process_count(),
        "versions": dict(_versions()),
        "commit": _commit(),
        "command": sys.argv,
    }


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = [("flax_mnv2", __version__), ("python", platform.python_version())]
    for package in _PACKAGES:
        try:
            found.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


@functools.cache
def _commit() -> str | None:
    """Returns the commit of this library's own working tree, marked where it was changed; None where it is none."""
    if not (_SOURCE / ".git").exists():
        return None
    command = ["git", "-C", str(_SOURCE), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def _described(dataset: Dataset) -> dict[str, Any]:
    fractions = dataset.class_fractions()
    described = {"name": dataset.name, "notes": dataset.notes()}
    if fractions:
        return described | {"counted": dataset.counted, "fractions": fractions}
    return described | {"histogram": dataset.histogram()}
