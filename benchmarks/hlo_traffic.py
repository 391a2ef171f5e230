"""Where in the model the HBM traffic of a compiled program arises: by instruction, and by layer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the package loads JAX, which must come after the command line
    from flax_mnv2.tools.tpu_compile.hlo import Array, Instruction, Module


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one instruction moves through HBM each time it runs, times ``count``.

    Attributes:
      instruction: the instruction.
      arrays: those that it reads and writes in HBM, largest first, with ``in`` or ``out``.
      op_name: the path of JAX names of the operation, of a fusion that of its root, of a copy that of what it copies.
      count: how often it runs in one execution of the program.
    """

    instruction: Instruction
    arrays: tuple[tuple[str, Array], ...]
    op_name: str
    count: int

    @property
    def bytes(self) -> int:
        """Read and written, in all its runs."""
        return self.count * sum(array.bytes for _, array in self.arrays)

    @property
    def cycles(self) -> int:
        """The compiler's own estimate, of all its runs; 0 where it has none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.instruction.line)
        return self.count * int(found[1]) if found else 0


def traffic_of(module: Module) -> list[Traffic]:
    """Returns what each instruction that runs moves; those inside of a fusion are the fusion's."""
    found = []
    for run in module.runs():
        if run.fused:
            continue
        inputs, outputs = run.moved()
        arrays = [("in", array) for array in inputs] + [("out", array) for array in outputs]
        arrays.sort(key=lambda item: -item[1].bytes)
        found.append(Traffic(run.instruction, tuple(arrays), _op_name(run.instruction, run.known), run.count))
    return found


def count(module: Module, opcode: str) -> int:
    """Returns the number of instructions with this opcode in all computations."""
    return sum(each.opcode == opcode for instructions in module.computations.values() for each in instructions)


def layer_of(op_name: str, depth: int = 2) -> str:
    """Where in the model an operation stands, and in which direction: ``layer_01/conv_3x3 backward``."""
    parts = op_name.split("/")
    direction = "backward" if "transpose(" in op_name else "forward" if "jvp(" in op_name else ""
    module = [part for part in parts[1:] if not re.search(r"[()]", part) and part not in ("shard_map", "mobilenet_v2")]
    if not direction or len(module) < 2:
        return "update, loss and input" if not direction else f"model {direction}"
    return f"{'/'.join(module[: min(depth, len(module) - 1)])} {direction}"


def by_layer(traffic: Iterable[Traffic], depth: int = 2) -> dict[str, tuple[int, int]]:
    """Bytes and estimated cycles by ``layer_of``, most bytes first."""
    totals: dict[str, tuple[int, int]] = {}
    for each in traffic:
        layer = layer_of(each.op_name, depth)
        size, cycles = totals.get(layer, (0, 0))
        totals[layer] = (size + each.bytes, cycles + each.cycles)
    return dict(sorted(totals.items(), key=lambda item: -item[1][0]))


def _op_name(each: Instruction, known: Mapping[str, Instruction]) -> str:
    """The instruction's ``op_name``; without one, that of the instruction whose result it moves."""
    while not (found := re.search(r'op_name="([^"]*)"', each.line)) and each.operands and each.operands[0] in known:
        each = known[each.operands[0]]
    return found[1] if found else ""
