"""What one item of Hugging Face's page is, and when ours does as theirs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Line = Callable[[Any], Any]  # takes a library, gives what is compared


@dataclasses.dataclass(frozen=True)
class Item:
    """A class, argument, field, tip or example of the page, as a line of code.

    Attributes:
      name: what the page calls it, such as ``"config.output_stride"``; unique.
      line: the line, which takes the library: ``lambda lib: lib.MobileNetV2Config(output_stride=16).output_stride``.
        It is run with transformers and with flax_mnv2.
      ours: the line of this library where it is written otherwise: an idiom of Flax. None where ``line`` is ours too.
      idiom: for those, the reason, as docs/from_transformers.md gives it.
      page: where release 5 of transformers left the page of release 4, the line that gives what that page says; it is
        run in place of transformers'.
    """

    name: str
    line: Line
    ours: Line | None = None
    idiom: str = ""
    page: Line | None = None

    def __post_init__(self):
        assert (self.ours is None) == (not self.idiom), f"{self.name}: an idiom has a line of ours and a reason"


def outcome(line: Line, library: Any) -> Any:
    """Returns what a line gives; for one that raises, the kind of error that both libraries share."""
    try:
        return line(library)
    except Exception as error:
        kinds = (ValueError, TypeError, KeyError, AttributeError, ImportError, OSError)
        return next((kind for kind in kinds if isinstance(error, kind)), ValueError)  # of huggingface_hub's own kind


def refused(line: Line) -> Line:
    """A line that says whether a library refuses another; of which kind the error is, is its own matter."""
    return lambda library: isinstance(outcome(line, library), type)


def assert_same(ours: Any, theirs: Any, where: str = "value") -> None:
    """Compares structures of plain values and arrays; floating-point arrays within 1e-4 of theirs' scale."""
    if isinstance(theirs, Mapping):
        assert isinstance(ours, Mapping), where
        assert list(map(str, ours)) == list(map(str, theirs)), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(theirs, (list, tuple)):
        assert isinstance(ours, (list, tuple)), where
        assert len(ours) == len(theirs), where
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    elif hasattr(theirs, "shape"):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.shape == theirs.shape, f"{where}: {ours.shape} and not {theirs.shape}"
        if theirs.dtype.kind == "f":
            difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0)
            assert difference <= 1e-4 * max(np.abs(theirs).max(initial=0), 1e-3), f"{where}: {difference:.3g} apart"
        else:
            np.testing.assert_array_equal(ours, theirs, where)
    else:
        assert ours == theirs, where
