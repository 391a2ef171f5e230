"""Devices of a TPU slice that is not there, for the compiler alone, and of this machine's CPU.

What is published of a chip: the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of Google Cloud's documentation
(docs.cloud.google.com/tpu/docs, read in 2026). The interconnect there is given for both directions together, or in
bits a second, or as the all-reduce bandwidth of a pod; all agree with what a chip can send over all its links:
v5e 51.2 TB/s and v6e 102.4 TB/s over 256 chips, v5p 4,800 Gbit/s. Only v4's, six links of 50 GB/s, is from the paper
(Jouppi et al., ISCA 2023).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from flax_mnv2.errors import ConfigError, UserError

MISSING = """\
The TPU compiler is not installed (no module libtpu). It needs no TPU:
    pip install --no-deps --target /tmp/tpu_compiler -r benchmarks/requirements-tpu.txt
and then put it in front of the command:
    PYTHONPATH=/tmp/tpu_compiler python -m …"""
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # do not look for a TPU's metadata server
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # beside another compilation: the lock guards a TPU, of which none is used
}
_ACCELERATORS = {"v4": "v4", "v5e": "v5litepod", "v5p": "v5p", "v6e": "v6e"}
_CORES = {"v4": 2, "v5p": 2}  # accelerator types of these count cores, of the others chips


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip; rates are a second, in bytes and in bfloat16 operations."""

    name: str
    hbm_bytes: int
    hbm_bandwidth: float
    peak_flops: float
    link_bandwidth: float  # that it can send over all its links together
    slices: tuple[str, ...]  # all flat ones that exist; of three dimensions some, since any even sides do

    @property
    def dimensions(self) -> int:
        """Of a slice, 2 or 3."""
        return self.slices[0].count("x") + 1


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "8x8x8")
CHIPS: Mapping[str, Chip] = {
    "v4": Chip("TPU v4", 32 * 2**30, 1200e9, 275e12, 300e9, _CUBES),
    "v5e": Chip("TPU v5e", 16 * 2**30, 819e9, 197e12, 200e9, _FLAT),
    "v5p": Chip("TPU v5p", 95 * 2**30, 2765e9, 459e12, 600e9, _CUBES),
    "v6e": Chip("TPU v6e", 32 * 2**30, 1638e9, 918e12, 400e9, _FLAT),
}


class CompilerMissingError(UserError):
    """The compiler of the asked platform is not installed."""


@dataclasses.dataclass(frozen=True)
class Slice:
    """Devices to compile for, one for each chip."""

    name: str  # as asked for, such as v5e:4x4
    devices: Sequence[Any]
    num_hosts: int  # processes that a run on it has
    chip: Chip | None  # None on CPU


def open_slice(topology: str) -> Slice:
    """Returns the devices of a slice. This process computes on its CPU from then on.

    ``topology`` is ``KIND:SHAPE`` such as ``v5e:16x16`` or ``v4:2x2x4``, which needs libtpu (else a
    CompilerMissingError) but no TPU; or ``cpu:N`` for N devices of this machine, which tries the same without it. A
    ConfigError says that there is no such slice.
    """
    kind, _, shape = topology.partition(":")
    jax.config.update("jax_platforms", "cpu")  # a TPU or GPU of this machine has no part in this
    if kind == "cpu":
        return _cpu_slice(topology, shape)
    sides = _sides(topology, kind, shape)
    if importlib.util.find_spec("libtpu") is None:
        raise CompilerMissingError(MISSING)
    jax.config.update("jax_enable_compilation_cache", False)  # its programs cannot be read back without the devices
    os.environ |= _ENVIRONMENT | {
        "TPU_ACCELERATOR_TYPE": f"{_ACCELERATORS[kind]}-{math.prod(sides) * _CORES.get(kind, 1)}"
    }
    from jax.experimental import topologies

    options: dict[str, Any] = {"chips_per_host_bounds": _host_bounds(sides)}
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # both cores of a chip as one device, JAX's default on a real one
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        raise ConfigError(f"libtpu knows no slice {topology}: {str(error).splitlines()[0]}. {_known(kind)}") from None
    return Slice(topology, devices, len({device.process_index for device in devices}), CHIPS[kind])


def _sides(topology: str, kind: str, shape: str) -> list[int]:
    if kind not in CHIPS:
        raise ConfigError(
            f"--topology: expected KIND:SHAPE with KIND one of {', '.join(CHIPS)} or cpu, such as v5e:4x4; "
            f"found {topology!r}."
        )
    chip = CHIPS[kind]
    sides = [int(side) if side.isdecimal() else 0 for side in shape.split("x")]
    if len(sides) != chip.dimensions or not all(sides) or (chip.dimensions == 2 and shape not in chip.slices):
        raise ConfigError(f"--topology: there is no slice {topology!r}. {_known(kind)}")
    return sides


def _host_bounds(sides: list[int]) -> tuple[int, int, int]:
    """Chips of one host: 2×2, and in a plane a whole slice of up to 8 chips."""
    if len(sides) == 2 and math.prod(sides) <= 8:
        return (*sides, 1)
    return (min(sides[0], 2), min(sides[1], 2), 1)


def _known(kind: str) -> str:
    chip = CHIPS[kind]
    shapes = ", ".join(f"{kind}:{shape}" for shape in chip.slices)
    return f"Slices of {chip.name} are {shapes}{'.' if chip.dimensions == 2 else ', and so on.'}"


def _cpu_slice(topology: str, shape: str) -> Slice:
    count = int(shape) if shape.isdecimal() else 0
    if count < 1:
        raise ConfigError(
            f"--topology: expected cpu:N for N devices of this machine, such as cpu:4; found {topology!r}."
        )
    with contextlib.suppress(RuntimeError):  # JAX has counted its devices already
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ConfigError(f"--topology: {topology} asks for more devices than this process has, {len(devices)}.")
    return Slice(topology, devices[:count], 1, None)
