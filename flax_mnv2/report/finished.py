"""The report that training writes when it ends."""

from __future__ import annotations

import pathlib

import jax


def report_finished(workdir: str | pathlib.Path) -> None:
    """Writes the report on a run that has ended, on process 0, and prints where, or in one line why there is none.

    Nothing is raised: the run is done, and its results do not depend on the report.
    """
    if jax.process_index() != 0:
        return
    try:
        from flax_mnv2.report.page import write_report

        print(f"report:      {pathlib.Path(workdir) / write_report(workdir).name}", flush=True)
    except Exception as error:  # whatever it is, it must not make a finished run a failed one
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"warning: No report: {reason} Try python -m flax_mnv2.report {workdir}", flush=True)
