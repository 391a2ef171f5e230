"""What every scenario of the soak is given and gives: where to work and how often, and the rows of the table."""

import dataclasses
import datetime
import pathlib
import shutil

import harness

DEFAULT_TIMES = 50
STOP_WITHIN = 30.0  # seconds that a run may take to save and end


@dataclasses.dataclass
class Row:
    """What came of one kind of fault.

    Attributes:
      fault: what was done.
      tried: how often.
      lost: what went wrong, a text each; empty where all was survived.
      measured: beside it, in words.
    """

    fault: str
    tried: int = 0
    lost: list[str] = dataclasses.field(default_factory=list)
    measured: str = ""

    def cells(self) -> tuple[str, ...]:
        """Of the table."""
        return self.fault, str(self.tried), str(self.tried - len(self.lost)), str(len(self.lost)), self.measured


@dataclasses.dataclass
class Soak:
    """Where the scenarios work, and how much they do."""

    folder: pathlib.Path
    times: int
    data: harness.Data

    def scaled(self, count: int) -> int:
        """A number of repetitions, by ``--times``."""
        return max(1, round(count * self.times / DEFAULT_TIMES))

    def place(self, name: str) -> pathlib.Path:
        """An empty folder."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path


def say(line: str) -> None:
    """What happens, with the time."""
    print(f"{datetime.datetime.now():%H:%M:%S} {line}", flush=True)
