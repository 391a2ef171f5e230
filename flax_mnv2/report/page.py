"""The page, and the file that it is written to."""

from __future__ import annotations

import datetime
import pathlib

from flax_mnv2.errors import DataError
from flax_mnv2.files import write_text
from flax_mnv2.report.evaluation_part import data, evaluation
from flax_mnv2.report.html import Html, element, joined
from flax_mnv2.report.reading import RunFolder, read_run
from flax_mnv2.report.style import CSS
from flax_mnv2.report.training_part import config, curves, environment, summary
from flax_mnv2.version import __version__

REPORT_NAME = "report.html"
# The browser is told to fetch and run nothing, whatever stands in the page.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_SECTIONS = ("curves", "evaluation", "data", "config", "environment")


def write_report(workdir: str | pathlib.Path, output: str | pathlib.Path = "") -> pathlib.Path:
    """Writes the report on a run, by default ``WORKDIR/report.html``, and returns its path.

    A ConfigError where ``workdir`` is no run's, a DataError where something in it cannot be read or the file not
    be written.
    """
    run = read_run(workdir)
    path = pathlib.Path(output).expanduser() if output else run.path / REPORT_NAME
    page = render(run)
    try:
        write_text(path, page)
    except OSError as error:
        raise DataError(f"Cannot write {path}: {error.strerror}. Name another file with --output.") from None
    return path


def render(run: RunFolder) -> str:
    """Returns the page as HTML that needs nothing beside it."""
    title = f"{run.path.name}: {run.task.name.replace('_', ' ')}"
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("title", title),
        element("style", Html(CSS)),
    )
    body = element(
        "body",
        element("h1", title),
        summary(run),
        element("nav", *(element("a", name, href=f"#{name}") for name in _SECTIONS)),
        curves(run),
        evaluation(run),
        data(run),
        config(run),
        environment(run),
        element("p", f"{run.path}; written {now} by flax_mnv2 {__version__}", class_="soft"),
    )
    return joined([Html("<!DOCTYPE html>\n"), element("html", head, body, lang="en"), Html("\n")])
