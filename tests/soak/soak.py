"""Runs broken many times over, in every way that the tests beside it know once: make soak

    python tests/soak/soak.py                          # about an hour on two cores
    python tests/soak/soak.py --only kill-saves,damage --times 200

Seeds are fixed; at what moments signals arrive follows from the machine as well. Prints a table, and with ``--output``
puts it into a Markdown file between two marks.
"""

import argparse
import datetime
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "helpers"))  # helpers of the tests
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the library

import harness
import inputs
import moves
import saves
import stops
from absl import logging
from rows import DEFAULT_TIMES, Row, Soak, say

BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"

SCENARIOS = {
    "stop-random": stops.stop_random,
    "kill-random": stops.kill_random,
    "stop-quickstart": stops.stop_quickstart,
    "second-ctrl-c": stops.second_ctrl_c,
    "two-processes": stops.two_processes,
    "kill-saves": saves.kill_saves,
    "kill-saves-in-training": saves.kill_saves_in_training,
    "damage": saves.damage,
    "damage-in-training": saves.damage_in_training,
    "full-disk": saves.full_disk,
    "poisoned": inputs.poisoned,
    "damaged-records": inputs.damaged_records,
    "killed-workers": inputs.killed_workers,
    "elastic-batches": moves.elastic_batches,
    "elastic": moves.elastic,
    "long-run": moves.long_run,
}


def table(rows: list[Row]) -> str:
    """Markdown."""
    head = ("Fault", "Times tried", "Survived", "Lost", "Measured")
    lines = [head, ("---", "--:", "--:", "--:", "---"), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def put_between_marks(path: pathlib.Path, text: str) -> None:
    """Replaces what stands between the two marks in a file, or adds them at its end."""
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    if BEGIN not in page:
        page = f"{page.rstrip()}\n\n{BEGIN}\n{END}\n".lstrip()
    before, rest = page.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}", encoding="utf-8")


def main() -> int:
    """Runs what is asked for; the status is 1 where something was lost."""
    logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(SCENARIOS), help="scenarios, with commas")
    parser.add_argument("--times", type=int, default=DEFAULT_TIMES, help="kills during saves; the rest follows")
    parser.add_argument("--output", type=pathlib.Path, help="Markdown file that gets the table between its marks")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := set(names) - set(SCENARIOS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    rows, began = [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        (pathlib.Path(folder) / "data").mkdir()
        soak = Soak(pathlib.Path(folder), arguments.times, harness.Data(pathlib.Path(folder) / "data"))
        for name in names:
            say(f"==== {name}: {SCENARIOS[name].__doc__}")
            start = time.monotonic()
            try:
                rows += SCENARIOS[name](soak)
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                say(f"LOST {error}")
                rows.append(Row(name, 1, [str(error)], "ended early"))
            say(f"==== {name}: {time.monotonic() - start:.0f} s")
    minutes = (time.monotonic() - began) / 60
    machine = f"{os.cpu_count()} CPU cores, Python {platform.python_version()}"
    text = f"{table(rows)}\n{datetime.date.today()}, {machine}, {minutes:.0f} minutes, `--times {arguments.times}`.\n"
    print(f"\n{text}")
    if arguments.output:
        put_between_marks(arguments.output, text)
    return int(any(row.lost for row in rows))


if __name__ == "__main__":
    sys.exit(main())
