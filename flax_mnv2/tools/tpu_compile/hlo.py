"""Reads optimised HLO text: how many bytes a program moves through HBM, and what it sends between chips.

XLA's cost analysis does not say: it counts the inside of a loop once, arrays without the padding of their tiles, and
the on-chip memory like HBM. A TPU keeps arrays in tiles, ``T(8,128)`` being 8 rows of 128 lanes, so the two fastest
dimensions are rounded up: 32 channels along the lanes occupy four times their bytes. ``S(1)`` is the on-chip memory.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

COLLECTIVES = ("all-reduce", "reduce-scatter", "all-gather", "collective-permute", "all-to-all")
HBM = 0

_LEAF = re.compile(r"(?<![\w%.])([a-z]+\d*\w*)\[([\d,<=]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*?)\)(?:, |$)")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*->.*\{$")
_CALLED = re.compile(r"\b(?:body|calls|to_apply|true_computation|false_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"\bcondition=%([\w.\-]+)")
_CONSTANT = re.compile(r" constant\((\d+)\)")
# These name arrays, or wait for them, and move nothing.
_FREE = frozenset({"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier"})
_CONTROL = ("while", "conditional", "call")  # these move what they call moves
_DONE = ("-done", "-update")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape, its dimensions fastest first in ``minor_to_major`` and slowest first in ``tile``."""

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...]
    tile: tuple[int, ...]
    space: int

    @property
    def logical_bytes(self) -> int:
        """Bytes of the elements alone."""
        return math.prod(self.dims) * self._bits // 8

    @property
    def bytes(self) -> int:
        """Bytes with the padding of tiles."""
        sizes = [self.dims[dim] for dim in reversed(self.minor_to_major)] or list(self.dims)
        sizes = [1] * (len(self.tile) - len(sizes)) + sizes
        for place, tile in enumerate(reversed(self.tile), start=1):
            sizes[-place] = math.ceil(sizes[-place] / tile) * tile
        return math.prod(sizes) * self._bits // 8

    @property
    def _bits(self) -> int:
        found = re.search(r"\d+", self.dtype)
        return 8 if self.dtype == "pred" else int(found[0]) if found else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; ``operands`` are names, ``results`` the arrays of its shape one after the other."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    line: str

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs."""
        branches = _BRANCHES.search(self.line)
        return (*_CALLED.findall(self.line), *(_NAME.findall(branches[1]) if branches else ()))


@dataclasses.dataclass(frozen=True)
class Run:
    """An instruction, all of its computation by name, and how often it runs in one execution of the program."""

    instruction: Instruction
    known: Mapping[str, Instruction]
    count: int
    fused: bool  # inside of another instruction, which moves the data

    def moved(self) -> tuple[list[Array], list[Array]]:
        """Returns what it reads from HBM and what it writes there, each time.

        An operand counts whole, also where a fusion reads a part of it, so this is an upper bound.
        """
        each = self.instruction
        if self.fused:
            return [], []
        if each.opcode == "copy-start":  # results: destination, source, a flag
            outputs, inputs = each.results[:1], each.results[1:2]
        elif each.opcode == "slice-start":  # results: source, of which a slice is read, destination, a flag
            source, target = each.results[:2]
            outputs, inputs = [target], [dataclasses.replace(target, space=source.space)]
        elif each.opcode == "dynamic-update-slice":  # in place
            inputs = outputs = self.known[each.operands[1]].results if each.operands[1] in self.known else []
        elif each.opcode in ("slice", "dynamic-slice"):
            inputs = outputs = each.results
        else:
            inputs = [array for name in each.operands if name in self.known for array in self.known[name].results]
            outputs = each.results
        inputs, outputs = ([array for array in arrays if array.space == HBM] for arrays in (inputs, outputs))
        return inputs, outputs


class Module:
    """A parsed module: instructions by the name of their computation, and the name of the entry."""

    def __init__(self, text: str):
        """Parses the text of ``compiled.as_text()``."""
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        current = None
        for line in text.splitlines():
            if found := _COMPUTATION.match(line):
                current = self.computations.setdefault(found[2], [])
                self.entry = found[2] if found[1] else self.entry
            elif current is not None and (instruction := parse_instruction(line)) is not None:
                current.append(instruction)

    def runs(self, computation: str = "", count: int = 1, *, fused: bool = False) -> Iterator[Run]:
        """Yields what one execution runs, the inside of a loop as often as it is known to turn."""
        instructions = self.computations.get(computation or self.entry, ())
        known = {each.name: each for each in instructions}
        for each in instructions:
            if each.opcode in _FREE or each.opcode.endswith(_DONE):
                continue  # the latter name the computation that their start has run
            if each.opcode not in _CONTROL:
                yield Run(each, known, count, fused)
            if each.opcode.removesuffix("-start") not in COLLECTIVES:  # what these call adds two numbers
                for called in each.called:
                    inside = fused or each.opcode not in _CONTROL
                    yield from self.runs(called, count * self.turns(each), fused=inside)

    def hbm_bytes(self) -> int:
        """Returns the bytes that one execution reads from HBM and writes there."""
        moved = ((run.count, (*inputs, *outputs)) for run in self.runs() for inputs, outputs in (run.moved(),))
        return sum(count * array.bytes for count, arrays in moved for array in arrays)

    def collectives(self) -> dict[str, list[int]]:
        """Returns the bytes of the result of each collective that one execution runs, by kind."""
        found: dict[str, list[int]] = {}
        for run in self.runs():
            each = run.instruction
            kind = each.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            arrays = [array for array in each.results if array.space in (HBM, 1)]
            if each.opcode in ("all-gather-start", "collective-permute-start"):  # results: sources, destinations
                arrays = arrays[1:2] if len(each.operands) == 1 else arrays[len(arrays) // 2 :]
            found.setdefault(kind, []).extend([sum(array.logical_bytes for array in arrays)] * run.count)
        return found

    def turns(self, instruction: Instruction) -> int:
        """Returns how often an instruction runs what it calls.

        For a loop that is what the compiler notes; else the constant up to which its condition compares, as in the
        loops that ``jax.lax.scan`` makes, which count from 0 by 1; else 1.
        """
        if found := _TURNS.search(instruction.line):
            return int(found[1])
        condition = _CONDITION.search(instruction.line)
        known = {each.name: each for each in self.computations.get(condition[1], ())} if condition else {}
        for each in known.values():
            if each.opcode == "compare" and "direction=LT" in each.line and each.operands[-1] in known:
                limit = _CONSTANT.search(known[each.operands[-1]].line)
                return int(limit[1]) if limit else 1
        return 1

    def loops(self) -> list[int]:
        """Returns how often each loop turns."""
        everything = (each for instructions in self.computations.values() for each in instructions)
        return [self.turns(each) for each in everything if each.opcode == "while"]


def parse_instruction(line: str) -> Instruction | None:
    """Returns an instruction from its line; None if the line is none."""
    found = _INSTRUCTION.match(line)
    if not found:
        return None
    name, shape, opcode, operands = found.groups()
    return Instruction(name, opcode, parse_shape(shape), tuple(_NAME.findall(operands)), line)


def parse_shape(text: str) -> tuple[Array, ...]:
    """Returns the arrays of a shape, those of a tuple one after the other."""
    arrays = []
    for dtype, dims, order, layout in _LEAF.findall(text):
        tile = re.search(r"T\(([\d,]*)\)", layout)
        space = re.search(r"S\((\d+)\)", layout)
        sizes = (_integers(dims.replace("<=", "")), _integers(order), _integers(tile[1] if tile else ""))
        arrays.append(Array(dtype, *sizes, space=int(space[1]) if space else HBM))
    return tuple(arrays)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)
