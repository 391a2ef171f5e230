"""The command ``python -m flax_mnv2.report``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from flax_mnv2.errors import exit_status
from flax_mnv2.report.page import REPORT_NAME, write_report

_DESCRIPTION = f"""\
Write one HTML file on a training run: curves, metrics, pictures, data, config and
environment. It holds all that it shows, so that it can be sent or opened anywhere.
train.py writes it too when it ends; write it again after eval.py, whose metrics per
class and pictures it then has. Default: WORKDIR/{REPORT_NAME}."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command, by default with the arguments of the command line, and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m flax_mnv2.report",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("workdir", metavar="WORKDIR", help="the --workdir of a run of train.py, finished or not")
    parser.add_argument("--output", default="", metavar="FILE", help=f"file to write (default: WORKDIR/{REPORT_NAME})")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: print(f"written: {write_report(arguments.workdir, arguments.output)}"))
