"""A row of a table, and the words for what is wrong in many of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flax_mnv2.errors import DataError

SPLITS = TRAIN, VAL, TEST = "train", "val", "test"
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), VAL),
    **dict.fromkeys(("test", "testing"), TEST),
}
SPLIT_COLUMNS = ("split", "set", "subset", "partition")
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Row:
    """What a table says of one image.

    Attributes:
      where: file and line, for messages.
      folder: of the file, a prefix of names such as ``"train/"``; images are looked for there first.
      image: its name as it is written.
      split: ``"train"``, ``"val"``, ``"test"``, or empty where nothing says.
      cells: what is left, by column: text from a CSV, any value from JSON.
    """

    where: str
    folder: str
    image: str
    split: str
    cells: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of one file, or of all JSON files; ``columns`` are those that may be targets, in their order."""

    name: str
    columns: tuple[str, ...]
    rows: Sequence[Row]


def split_of(word: str) -> str:
    """Returns the split that a word names in any case, or an empty text."""
    return SPLIT_WORDS.get(word.strip().casefold(), "")


def refuse(what: str, places: Sequence[str], advice: str) -> DataError:
    """Returns one error for a mistake that occurs in some places, the first of which are named."""
    more = f"; and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    return DataError(f"{what}: {'; '.join(places[:_SHOWN])}{more}. {advice}")
