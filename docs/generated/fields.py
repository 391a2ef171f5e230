"""Every field of a run's config, with the meaning that stands beside it in the code that adds it."""

import ast
import inspect
import io
import itertools
import re
import tokenize
from collections.abc import Iterator, Mapping
from types import ModuleType

from mkdocs.exceptions import PluginError

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.deeplab import DeepLabSpec
from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.config.quantization import QuantizationSpec
from flax_mnv2.data.datasets.registry import DATASETS
from flax_mnv2.tasks.classification import config as classification
from flax_mnv2.tasks.detection import config as detection
from flax_mnv2.tasks.multi_label import task as multi_label
from flax_mnv2.tasks.registry import TASKS
from flax_mnv2.tasks.regression import task as regression
from flax_mnv2.tasks.rules import flatten
from flax_mnv2.tasks.segmentation import config as segmentation
from flax_mnv2.tasks.segmentation import head
from flax_mnv2.tasks.vectors import config as vectors
from flax_mnv2.training.config import defaults

# Where the fields of each task are added, beside those of training/config/defaults.py.
_SOURCES: Mapping[str, tuple[ModuleType, ...]] = {
    "classification": (classification,),
    "multi_label_classification": (classification, vectors, multi_label),
    "regression": (classification, vectors, regression),
    "segmentation": (segmentation, head),
    "detection": (detection,),
}
# Sections that are the fields of a class, which its docstring describes.
_CLASSES = {
    "model.quantization": QuantizationSpec,
    "model.deeplab": DeepLabSpec,
    "detection": DetectionSpec,
    "model": MobileNetV2Config,
}
_SECTIONS = {"data": "data", "config": ""}  # local names of the code, and the sections that they are


def page() -> str:
    """Returns a table of the fields that all tasks have, and for each task one of those that are its own."""
    values = {task: flatten(defaults.default_config(task)) for task in TASKS}
    common = set.intersection(*(set(fields) for fields in values.values()))
    same = {name for name in common if len({repr(fields[name]) for fields in values.values()}) == 1}
    one = next(iter(values))
    meanings = _meanings(defaults)
    for module in itertools.chain(*_SOURCES.values()):  # what several tasks add alike is told once, with what all have
        meanings = {**_meanings(module), **meanings}
    parts = ["## All tasks", *_tables({name: value for name, value in values[one].items() if name in same}, meanings)]
    for task, fields in values.items():
        own = {name: value for name, value in fields.items() if name not in same}
        known = meanings | dict(itertools.chain(*(_meanings(module).items() for module in _SOURCES[task])))
        parts += [f"## `{task}`", "Fields that only some tasks have, or whose default differs.", *_tables(own, known)]
    return "\n\n".join(parts)


def data_sets() -> str:
    """Returns a table of the data sets, and the fields of ``config.data`` that each reads."""
    rows = ["| `config.data.dataset` | what it is | fields |", "|---|---|---|"]
    for name, entry in DATASETS.items():
        fields = "; ".join(f"`{field}`: {what}" for field, what in entry.fields.items())
        rows.append(f"| `{name}` | {entry.summary} | {_cell(fields)} |")
    return "\n".join(rows)


def _tables(fields: Mapping[str, object], meanings: Mapping[str, str]) -> Iterator[str]:
    """Yields a table for each section of the config."""
    sections: dict[str, list[str]] = {}
    for name, value in fields.items():
        section = name.rpartition(".")[0]
        meaning = meanings.get(name) or _from_class(section, name.rpartition(".")[2])
        if not meaning:
            raise PluginError(f"config.{name} has no comment where it is added, so the reference says nothing of it.")
        default = "" if value is None else f"`{_shown(value)}`"
        sections.setdefault(section, []).append(f"| `{name}` | {default} | {_cell(meaning)} |")
    for _, rows in sorted(sections.items()):
        yield "\n".join(["| `config.` … | default | |", "|---|---|---|", *rows])


def _shown(value: object) -> str:
    text = repr(value)
    return _cell(text if len(text) < 60 else text[:50] + "…")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("``", "`")


def _from_class(section: str, field: str) -> str:
    """Returns what the docstring of a section's class says of a field."""
    for prefix, owner in _CLASSES.items():
        if section == prefix:
            lines = re.search(r"Attributes:\n(.*?)(?:\n\n|\Z)", inspect.getdoc(owner), re.DOTALL)
            entries = re.split(r"\n  (?=\w+: )", "\n" + lines[1])
            found = {name: " ".join(text.split()) for name, _, text in (entry.partition(":") for entry in entries)}
            if field in found:
                return found[field]
    return ""


def _meanings(module: ModuleType) -> dict[str, str]:
    """Returns the comments on assignments to fields of the config in a module's source, by the field's dotted name.

    A comment stands on the assignment's own lines, or on lines of their own above it.
    """
    source = inspect.getsource(module)
    comments = {
        token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, str] = {}
    previous: list[str] = []
    for node in sorted(
        (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assign)), key=lambda node: node.lineno
    ):
        names = [name for target in node.targets for name in _dotted(target)]
        if not names:
            continue
        words = [comments[line][0] for line in range(node.lineno, node.end_lineno + 1) if line in comments]
        above, line = [], node.lineno - 1
        while line in comments and comments[line][1]:
            above.insert(0, comments[line][0])
            line -= 1
        if above and above[0].startswith("or "):  # goes on what the line before began
            for name in previous:
                found[name] = f"{found[name]}; {' '.join(above)}"
            above = []
        text = " ".join([*above, *words])
        for name in names:
            if text:
                found[name] = text
        previous = [name for name in names if name in found]
    return found


def _dotted(target: ast.expr) -> Iterator[str]:
    """Yields the dotted name of a field that is assigned to; of several, each."""
    if isinstance(target, ast.Tuple):
        for element in target.elts:
            yield from _dotted(element)
        return
    parts = []
    while isinstance(target, ast.Attribute):
        parts.insert(0, target.attr)
        target = target.value
    if isinstance(target, ast.Name) and parts and target.id in (*_SECTIONS, "section"):
        section = {"section": _section_of(parts[-1])}.get(target.id, _SECTIONS.get(target.id))
        yield ".".join(filter(None, [section, *parts]))


def _section_of(field: str) -> str:
    return "model.deeplab" if field == "preset" else "model.quantization"
