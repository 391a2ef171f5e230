"""Reads optimised HLO text: how many bytes each instruction moves, and what is sent between chips.

Shapes are counted as they lie in memory. A TPU keeps arrays in tiles, ``T(8,128)`` being 8 rows of 128 lanes, so the
two fastest dimensions are rounded up: 32 channels along the lanes occupy four times their bytes. ``S(1)`` is the
on-chip memory; what is there costs no HBM traffic.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator

COLLECTIVES = ("all-reduce", "reduce-scatter", "all-gather", "collective-permute", "all-to-all")
HBM = 0

_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128, "token": 0}
_LEAF = re.compile(r"(?<![\w%.])([a-z]+\d*\w*)\[([\d,<=]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEAD = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"\b(?:body|calls|to_apply|true_computation|false_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"\bcondition=%([\w.\-]+)")
_CONSTANT = re.compile(r" constant\((\d+)\)")
# These name arrays, or wait for them, and move nothing.
_FREE = frozenset({"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier"})
_DONE = ("-done", "-update")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape.

    Attributes:
      dtype: as HLO names it.
      dims: logical sizes.
      minor_to_major: order of the dimensions in memory, fastest first.
      tile: sizes of the tile that the fastest dimensions are rounded up to, slowest first; empty without tiling.
      space: memory space, 0 for HBM.
    """

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = HBM

    @property
    def logical_bytes(self) -> int:
        """Bytes of the elements alone."""
        return math.prod(self.dims) * _bits(self.dtype) // 8

    @property
    def bytes(self) -> int:
        """Bytes with the padding of tiles."""
        sizes = [self.dims[dim] for dim in reversed(self.minor_to_major)] or list(self.dims)
        sizes = [1] * (len(self.tile) - len(sizes)) + sizes
        for place, tile in enumerate(reversed(self.tile), start=1):
            sizes[-place] = math.ceil(sizes[-place] / tile) * tile
        return math.prod(sizes) * _bits(self.dtype) // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: without the percent sign.
      opcode: such as ``fusion``.
      results: the arrays of its shape, those of a tuple one after the other.
      operands: names.
      line: the whole text.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    line: str

    @property
    def op_name(self) -> str:
        """The path of JAX names of the operation, of a fusion that of its root."""
        found = re.search(r'op_name="([^"]*)"', self.line)
        return found[1] if found else ""

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs."""
        branches = _BRANCHES.search(self.line)
        return (*_CALLED.findall(self.line), *(_NAME.findall(branches[1]) if branches else ()))

    @property
    def cycles(self) -> int:
        """The compiler's own estimate, 0 where it has none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.line)
        return int(found[1]) if found else 0


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one instruction moves through HBM each time it runs, times ``count``.

    Attributes:
      instruction: the instruction.
      read: bytes of its operands in HBM.
      written: bytes of its results in HBM.
      arrays: those arrays, largest first, with ``in`` or ``out``.
      op_name: the instruction's, or that of what it copies.
      count: how often it runs in one execution of the program.
    """

    instruction: Instruction
    read: int
    written: int
    arrays: tuple[tuple[str, Array], ...]
    op_name: str
    count: int = 1

    @property
    def bytes(self) -> int:
        """Read and written, in all its runs."""
        return self.count * (self.read + self.written)


class Module:
    """A parsed module.

    Attributes:
      computations: instructions by name of the computation.
      entry: name of the one that is run.
    """

    def __init__(self, text: str):
        """Parses the text of ``compiled.as_text()``."""
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        current = None
        for line in text.splitlines():
            if current is None:
                found = _COMPUTATION.match(line)
                if found and "->" in line:
                    current = self.computations.setdefault(found[2], [])
                    self.entry = found[2] if found[1] else self.entry
            elif line.startswith("}"):
                current = None
            elif (instruction := parse_instruction(line)) is not None:
                current.append(instruction)

    def instructions(self) -> Iterator[Instruction]:
        """Those of all computations."""
        for instructions in self.computations.values():
            yield from instructions

    def traffic(self, computation: str = "", count: int = 1) -> list[Traffic]:
        """What the instructions of the entry move through HBM, loops included as often as they are known to turn.

        An operand counts whole, also where a fusion reads a part of it, so this is an upper bound.
        """
        instructions = self.computations[computation or self.entry]
        known = {each.name: each for each in instructions}
        moved = []
        for each in instructions:
            if each.opcode in ("while", "conditional", "call"):
                for called in each.called:
                    moved += self.traffic(called, count * self.turns(each))
                continue
            if each.opcode in _FREE or each.opcode.endswith(_DONE):
                continue
            moved.append(_traffic(each, known, count))
        return moved

    def collectives(self, computation: str = "") -> dict[str, list[int]]:
        """Bytes of the result of each collective that one execution runs, by kind.

        A pair of start and done counts once, one in a loop as often as the loop is known to turn.
        """
        found: dict[str, list[int]] = {}
        for each in self.computations[computation or self.entry]:
            kind = each.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                arrays = [array for array in each.results if array.space in (HBM, 1)]
                if each.opcode in ("all-gather-start", "collective-permute-start"):
                    arrays = arrays[1:2] if len(each.operands) == 1 else arrays[len(arrays) // 2 :]
                found.setdefault(kind, []).append(sum(array.logical_bytes for array in arrays))
                continue  # what it calls adds two numbers
            if each.opcode.endswith(_DONE):
                continue  # names the computation that its start has run
            for called in each.called:
                if called in self.computations:
                    for kind, sizes in self.collectives(called).items():
                        found.setdefault(kind, []).extend(sizes * self.turns(each))
        return found

    def turns(self, instruction: Instruction) -> int:
        """How often an instruction runs what it calls.

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
        """How often each loop turns."""
        return [self.turns(each) for each in self.instructions() if each.opcode == "while"]

    def count(self, opcode: str, having: str = "") -> int:
        """Number of instructions with this opcode, and with ``having`` in their text, in all computations."""
        return sum(each.opcode == opcode and having in each.line for each in self.instructions())


def parse_instruction(line: str) -> Instruction | None:
    """An instruction from its line; None if the line is none."""
    head = _HEAD.match(line)
    if not head:
        return None
    start = head.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.find(" ", start)
    shape, rest = line[start:end], line[end:].lstrip()
    opcode, bracket, _ = rest.partition("(")
    if not bracket:
        return None
    operands = rest[len(opcode) : _closing(rest, len(opcode)) + 1]
    return Instruction(head[1], opcode, parse_shape(shape), tuple(_NAME.findall(operands)), line.strip())


def parse_shape(text: str) -> tuple[Array, ...]:
    """The arrays of a shape, those of a tuple one after the other."""
    arrays = []
    for dtype, dims, order, layout in _LEAF.findall(text):
        tile = re.search(r"T\(([\d,]*)\)", layout)
        space = re.search(r"S\((\d+)\)", layout)
        arrays.append(
            Array(
                dtype,
                _integers(dims.replace("<=", "")),
                _integers(order),
                _integers(tile[1]) if tile else (),
                int(space[1]) if space else HBM,
            )
        )
    return tuple(arrays)


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
        totals[layer] = (size + each.bytes, cycles + each.count * each.instruction.cycles)
    return dict(sorted(totals.items(), key=lambda item: -item[1][0]))


def _traffic(each: Instruction, known: dict[str, Instruction], count: int) -> Traffic:
    if each.opcode == "copy-start":  # results: destination, source, a flag
        outputs, inputs = each.results[:1], each.results[1:2]
    elif each.opcode == "slice-start":  # results: source, of which a slice is read, destination, a flag
        source, target = each.results[:2]
        outputs, inputs = [target], [dataclasses.replace(target, space=source.space)]
    elif each.opcode == "dynamic-update-slice":  # in place
        inputs = outputs = list(known[each.operands[1]].results) if each.operands[1] in known else []
    elif each.opcode in ("slice", "dynamic-slice"):
        inputs = outputs = list(each.results)
    else:
        inputs = [array for name in each.operands if name in known for array in known[name].results]
        outputs = list(each.results)
    inputs, outputs = ([array for array in arrays if array.space == HBM] for arrays in (inputs, outputs))
    arrays = sorted(
        [("in", array) for array in inputs] + [("out", array) for array in outputs], key=lambda item: -item[1].bytes
    )
    read, written = (sum(array.bytes for array in arrays) for arrays in (inputs, outputs))
    return Traffic(each, read, written, tuple(arrays), _origin(each, known), count)


def _origin(each: Instruction, known: dict[str, Instruction]) -> str:
    """The instruction's ``op_name``; without one, that of the instruction whose result it moves."""
    while not each.op_name and each.operands and each.operands[0] in known:
        each = known[each.operands[0]]
    return each.op_name


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found[1]) if found else 0


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _closing(text: str, start: int) -> int:
    """Position of the bracket that closes the one at ``start``."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == "(") - (text[position] == ")")
        if depth == 0:
            return position
    return len(text)
