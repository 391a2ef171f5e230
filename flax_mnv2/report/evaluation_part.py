"""Sections on what the model can do and what it was taught: evaluations, single examples, data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flax_mnv2.errors import DataError
from flax_mnv2.report.html import Html, details, element, facts, joined, section, table
from flax_mnv2.report.pictures import in_order, picture
from flax_mnv2.report.reading import Evaluation, RunFolder, finite
from flax_mnv2.report.training_part import evaluations_on_the_way
from flax_mnv2.tasks.judgement import Judgement

_MAX_ROWS = 400  # of a table of classes; of more the first and last half
_MAX_LISTED = 15  # single examples at each end
_MAX_WORDS = 300  # characters of a list of names


def evaluation(run: RunFolder) -> Html:
    """Returns the metrics in the course of training, those of eval.py with every class, and its pictures."""
    parts = [element("h3", "In the course of training"), evaluations_on_the_way(run)]
    chosen = run.main_evaluation()
    if chosen is None:
        command = f"python eval.py --workdir {run.path}"
        hint = ("No evaluation by eval.py yet, so there are no metrics per class and no pictures. Make one with ",)
        again = (" and write this report again: ", element("code", f"python -m flax_mnv2.report {run.path}"), ".")
        return section(
            "evaluation", "Evaluation", *parts, element("p", *hint, element("code", command), *again, class_="hint")
        )
    metrics = chosen.metrics
    about = [
        (name, metrics[name])
        for name in ("model", "dataset", "split", "num_examples", "num_bad_examples")
        if name in metrics
    ]
    parts += [
        element("h3", f"By eval.py: {chosen.folder.name}"),
        facts((name.replace("_", " "), value) for name, value in about),
    ]
    scalars = [(run.title(name), value) for name, value in metrics.items() if finite(value) and name not in dict(about)]
    parts.append(table(("metric", "value"), scalars))
    names = [(name, value) for name, value in metrics.items() if _is_list_of(value, str) and value]
    parts += [element("p", f"{run.title(name)}: {_short(value)}", class_="soft") for name, value in names]
    tables = [(name, rows) for name, rows in metrics.items() if _is_list_of(rows, dict) and rows]
    parts += [
        details(f"{run.title(name)}: {len(rows)}", _class_table(rows), open_=len(rows) <= 40) for name, rows in tables
    ]
    if not tables:
        parts.append(element("p", "No metrics per class in it; eval.py writes them with --per_class.", class_="soft"))
    parts += [picture(path) for path in in_order(chosen.pictures())]
    parts.append(_examples(run, chosen))
    if len(run.evaluations) > 1:
        parts.append(details(f"All {len(run.evaluations)} evaluations", _comparison(run)))
    return section("evaluation", "Evaluation", *parts)


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _short(names: Sequence[str]) -> str:
    words = ", ".join(names)
    return words if len(words) <= _MAX_WORDS else f"{words[:_MAX_WORDS]}… ({len(names)})"


def _class_table(rows: Sequence[Mapping[str, Any]]) -> Html:
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "id"))
    head = [name.replace("_", " ") for name in columns]
    half, note = _MAX_ROWS // 2, ""
    if len(rows) > _MAX_ROWS:
        note = element("p", f"The first and the last {half} of {len(rows):,}; metrics.json has all.", class_="soft")
        rows = [*rows[:half], *rows[-half:]]
    return joined([note, table(head, ([row.get(name) for name in columns] for row in rows))])


def _comparison(run: RunFolder) -> Html:
    names = [name for name in run.task.titles if any(finite(one.metrics.get(name)) for one in run.evaluations)]
    rows = [
        (one.folder.name, one.metrics.get("num_examples"), *(one.metrics.get(name) for name in names))
        for one in run.evaluations
    ]
    return table(("evaluation", "examples", *map(run.title, names)), rows)


def _examples(run: RunFolder, chosen: Evaluation) -> Html:
    try:
        judged = chosen.judgements(run.task)
    except DataError as error:
        return element("p", str(error), class_="soft")
    if not judged:
        return Html()
    count = min(_MAX_LISTED, len(judged))
    head = ("file", "truth", "prediction", "error")

    def rows(chosen: Sequence[Judgement]) -> list[tuple[Any, ...]]:
        return [
            (one.file_name, one.truth, one.prediction, element("td", f"{one.error:.4f}", class_="number"))
            for one in chosen
        ]

    return joined(
        [
            element("h3", "Single examples"),
            element("p", f"Error: {run.task.error_words}.", class_="soft"),
            details(f"The {count} worst of {len(judged):,}", table(head, rows(judged[:count])), open_=True),
            details(f"The {count} best", table(head, rows(judged[::-1][:count]))),
        ]
    )


def data(run: RunFolder) -> Html:
    """Returns the splits, and how often each class occurs in them."""
    recorded = run.record.get("data") if isinstance(run.record.get("data"), dict) else {}
    splits = run.inputs.get("examples") if isinstance(run.inputs.get("examples"), dict) else {}
    labels = run.inputs.get("labels") if _is_list_of(run.inputs.get("labels"), str) else []
    parts = [
        facts(
            [
                ("data set", recorded.get("name") or run.config.get("data.dataset")),
                *_sizes(splits),
                ("labels", len(labels)),
            ]
        )
    ]
    notes = recorded.get("notes")
    if _is_list_of(notes, str):
        parts += [element("p", note, class_="soft") for note in notes]
    fractions = recorded.get("fractions")
    if isinstance(fractions, dict) and all(_fits(values, labels) for values in fractions.values()) and fractions:
        parts.append(_histogram(labels, fractions, str(recorded.get("counted"))))
    elif _is_list_of(recorded.get("histogram"), str) and recorded["histogram"]:
        parts.append(element("pre", "\n".join(recorded["histogram"])))
    else:
        parts.append(
            element(
                "p",
                "How often each class occurs was not counted when this data set was prepared or the run began.",
                class_="soft",
            )
        )
    return section("data", "Data", *parts)


def _sizes(splits: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows = []
    for split, about in splits.items():
        sizes = about.get("sizes") if isinstance(about, dict) else None
        if _is_list_of(sizes, int) and len(sizes) == 2:
            rows.append((split, f"{sizes[0]:,} examples, {sizes[1] / 2**20:,.1f} MiB"))
    return rows


def _fits(values: Any, labels: Sequence[str]) -> bool:
    return isinstance(values, list) and len(values) == len(labels) and all(map(finite, values))


def _histogram(labels: Sequence[str], fractions: Mapping[str, Sequence[float]], counted: str) -> Html:
    """Returns a row for each class, with a bar for each split; the longest fills the width."""
    longest = max((value for values in fractions.values() for value in values), default=0) or 1.0
    colors = {split: f"c{at % 6}" for at, split in enumerate(fractions)}
    legend = joined(element("span", element("i", class_=color), split, class_="key") for split, color in colors.items())
    shown = list(enumerate(labels))
    note = ""
    if len(shown) > _MAX_ROWS:
        shown.sort(key=lambda pair: -next(iter(fractions.values()))[pair[0]])
        half = _MAX_ROWS // 2
        shown = [*shown[:half], *shown[-half:]]
        note = element("p", f"The {half} most and the {half} least frequent of {len(labels):,}.", class_="soft")
    rows = []
    for at, label in shown:
        bars = joined(
            element("i", class_=colors[split], style=f"--part:{100 * values[at] / longest:.2f}%")
            for split, values in fractions.items()
        )
        cells = (element("td", f"{values[at]:.2%}", class_="number") for values in fractions.values())
        rows.append((label, element("td", bars, class_="pair"), *cells))
    head = ("class", joined([f"fraction of the {counted}", legend]), *fractions)
    return details(f"Histogram of {len(labels):,} classes", note, table(head, rows), open_=len(shown) <= 60)
