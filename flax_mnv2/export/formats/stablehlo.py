"""Writes and reads programs of StableHLO: a zip of ``program.bin``, as ``jax.export`` has it, and ``metadata.json``.

One file is for CPU, CUDA and TPU; it has the plain form of the network, since others need sizes that are known.
"""

from __future__ import annotations

import functools
import json
import pathlib
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from flax_mnv2.export.metadata import Metadata
from flax_mnv2.export.packages import needs_package
from flax_mnv2.export.serving import Function, Variables
from flax_mnv2.models.mobilenet_v2 import MIN_SIZE_PX

PLATFORMS = ("cpu", "cuda", "tpu")
_PROGRAM, _METADATA = "program.bin", "metadata.json"


def write_stablehlo(function: Function, variables: Variables, path: pathlib.Path, metadata: Metadata) -> None:
    """Writes a function of ``serving_function`` for all platforms.

    Raises:
      UserError: the package flatbuffers is missing.
    """
    with needs_package("stablehlo"):
        import flatbuffers  # noqa: F401 - jax.export writes with it, and does not ask for it
    settings = metadata.settings
    sides = "h,w" if settings.size is None else ",".join(map(str, settings.size))
    constraints = [f"{side}>={MIN_SIZE_PX}" for side in ("h", "w")] if settings.size is None else []
    shape = export.symbolic_shape(
        f"{settings.batch or 'b'},{sides},{metadata.config.num_channels}", constraints=constraints
    )
    images = jax.ShapeDtypeStruct(shape, jnp.float32 if settings.normalization is None else jnp.uint8)
    program = export.export(jax.jit(functools.partial(function, variables)), platforms=PLATFORMS)(images)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(_PROGRAM, program.serialize())
        archive.writestr(_METADATA, json.dumps(metadata.to_dict(), ensure_ascii=False, indent=1))


def read_stablehlo(path: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    """Returns the program (``jax.export.Exported``) and the metadata of a file; a ValueError or OSError for no such."""
    try:
        with zipfile.ZipFile(path) as archive:
            return export.deserialize(bytearray(archive.read(_PROGRAM))), json.loads(archive.read(_METADATA))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(str(error)) from None
