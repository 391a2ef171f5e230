"""Sections on the training itself: where it stands, its curves, its config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flax_mnv2.report.charts import chart
from flax_mnv2.report.html import Html, details, element, facts, joined, number, scrolling, section, table
from flax_mnv2.report.reading import RunFolder, finite

_WORDS = {
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
    "images_per_second": "images per second",
    "accuracy": "accuracy on training batches",
}
_LAST = ("learning_rate", "gradient_norm", "images_per_second")
_ABSENT = "(no field of this version)"


def summary(run: RunFolder) -> Html:
    """Returns the head of the page: what was trained, how far, and the figures that count."""
    cards = [("step", f"{run.step:,}" + (f" of {run.num_steps:,}" if run.num_steps else ""))]
    if run.best:
        cards.append((f"best {run.title(run.scored)}", number(run.best[run.scored])))
        cards.append(("at step", f"{run.best['step']:,}"))
    losses = [line["loss"] for line in run.lines if line["split"] == "train" and finite(line.get("loss"))]
    if losses:
        cards.append(("last training loss", number(losses[-1])))
    boxes = joined(element("div", element("b", value), name, class_="card") for name, value in cards)
    return joined([element("p", _state(run)), element("div", boxes, class_="cards")])


def _state(run: RunFolder) -> str:
    if not run.lines:
        return "Nothing has been logged yet: the run has not reached its first step."
    if run.num_steps is not None and run.step >= run.num_steps:
        return "The run is finished."
    return (
        "The run is not finished: it goes on, was interrupted, or was stopped early. The same train.py command goes on "
        "from the last checkpoint."
    )


def curves(run: RunFolder) -> Html:
    """Returns the charts: losses, metrics of evaluations, learning rate and what else was logged."""
    if not run.lines:
        return section("curves", "Curves", element("p", "No metrics.jsonl, or no line in it, yet."))
    steps = [line["step"] for line in run.lines]
    trained = [line for line in run.lines if line["split"] == "train"]
    names = _numeric(trained)
    panels = {"training loss": {name.replace("_", " "): name for name in names if "loss" in name}}
    panels |= {f"{title}, evaluation": named for title, named in _evaluated(run).items()}
    rest = sorted((name for name in names if "loss" not in name), key=lambda name: name in _LAST)
    panels |= {_WORDS.get(name, name.replace("_", " ")): {name: name} for name in rest}
    drawn = []
    for title, named in panels.items():
        lines = run.evaluated if title.endswith(", evaluation") else trained
        points = {
            word: [(one["step"], one[name]) for one in lines if finite(one.get(name))] for word, name in named.items()
        }
        points = {word: sorted(values) for word, values in points.items() if values}
        if points:
            drawn.append(chart(title, points, x_range=(min(steps), max(steps))))
    bad = sum(1 for line in trained if "loss" in line and not finite(line["loss"]))
    note = element("p", f"{bad} logged losses are not finite and not drawn.", class_="soft") if bad else ""
    return section("curves", "Curves", note, element("div", *drawn, class_="charts"))


def _numeric(lines: list[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for line in lines for name, value in line.items() if finite(value))
    return sorted(names.keys() - {"step"}, key=lambda name: (name != "loss", name))


def _evaluated(run: RunFolder) -> dict[str, dict[str, str]]:
    """Returns by title of a metric the curves in its chart: of the weights, and of their moving average."""
    found: dict[str, dict[str, str]] = {}
    for name in _numeric(run.evaluated):
        plain = name.removeprefix("ema_")
        found.setdefault(run.title(plain), {})["weights" if plain == name else "moving average"] = name
    return found


def evaluations_on_the_way(run: RunFolder) -> Html:
    """Returns a table of the metrics at the last and the best evaluation in the course of training."""
    if not run.evaluated:
        return element("p", "The run has not been evaluated in the course of training yet.")
    last, best = run.evaluated[-1], run.best or run.evaluated[-1]
    names = [name for name in _numeric(run.evaluated) if name in last or name in best]
    head = ("metric", f"last, step {last['step']:,}", f"best, step {best['step']:,}")
    rows = [(run.title(name), _value(last.get(name)), _value(best.get(name))) for name in names]
    note = f"On {last['split']}. The best is that of {run.title(run.scored)}."
    return joined([table(head, rows), element("p", note, class_="soft")])


def _value(value: Any) -> Any:
    return float(value) if finite(value) else "–"


def config(run: RunFolder) -> Html:
    """Returns the settings that differ from the defaults of the task, and all of them."""
    changed = {name for name, value in run.config.items() if run.defaults.get(name, _ABSENT) != value}
    own = [(_breaking(name), _shown(run.config[name]), _shown_default(run, name)) for name in sorted(changed)]
    every = [
        element(
            "tr",
            element("th", _breaking(name), scope="row"),
            element("td", _shown(value)),
            element(
                "td",
                _shown_default(run, name) if name in changed else "default",
                class_=None if name in changed else "soft",
            ),
            class_="changed" if name in changed else None,
        )
        for name, value in sorted(run.config.items())
    ]
    head = element("thead", element("tr", *(element("th", title) for title in ("field", "value", "default"))))
    whole = scrolling(element("table", head, element("tbody", *every)), wraps=True)
    return section(
        "config",
        "Config",
        details(
            f"{len(own)} of {len(run.config)} fields differ from the defaults of {run.task.name}",
            table(("field", "value", "default"), own, wraps=True),
            open_=len(own) <= 40,
        ),
        details("All fields; those that differ are marked", whole),
    )


def _breaking(name: str) -> Html:
    """Returns a dotted name that may be broken after its dots."""
    first, *others = name.split(".")
    return joined([first, *(part for other in others for part in (".", element("wbr"), other))])


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _shown_default(run: RunFolder, name: str) -> str:
    return _shown(run.defaults[name]) if name in run.defaults else _ABSENT


def environment(run: RunFolder) -> Html:
    """Returns where the run ran: versions, devices, commit and host, as training noted them at each start."""
    starts = run.record.get("starts")
    starts = [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []
    if not starts:
        words = "Not known: the run was begun by an earlier version, which did not note it, or has not begun."
        return section("environment", "Environment", element("p", words))
    last, *earlier = reversed(starts)
    parts = [facts(_described(last))]
    if earlier:
        parts.append(
            details(f"{len(earlier)} earlier starts of this run", *(facts(_described(start)) for start in earlier))
        )
    return section("environment", "Environment", *parts)


def _described(start: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows = []
    for name, value in start.items():
        if isinstance(value, dict):
            value = ", ".join(f"{package} {version}" for package, version in value.items())
        elif isinstance(value, list):
            value = element("code", " ".join(map(str, value)))
        rows.append(
            (name.replace("_", " "), "–" if value is None else value if isinstance(value, Html) else str(value))
        )
    return rows
