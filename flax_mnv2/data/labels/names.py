"""Names of classes, and perhaps their colours, from a list or from the label files that tools write.

A line that is of no known form is refused: a comment or an id that passes for a name would put every name off by one.
"""

import dataclasses
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from flax_mnv2.data.archives.tree import decode_text
from flax_mnv2.errors import ConfigError
from flax_mnv2.files import MAX_JSON_BYTES, read_bytes

Color = tuple[int, int, int]

_IGNORED = "__ignore__"  # labelme's name of what has no class; it is -1 there, so that the next is class 0
_COLOR = r"(?P<color>\d{1,3}[ ,;\t]\s*\d{1,3}[ ,;\t]\s*\d{1,3})"
_FORMS = tuple(
    re.compile(form)
    for form in (
        r"(?P<name>[^:]+):(?P<color>\d+,\d+,\d+)?(:[^:]*){0,2}",  # CVAT's labelmap.txt: name:color:parts:actions
        rf"{_COLOR}\s*[,;\t ]\s*(?P<name>[^,;:]*[^\d,;:\s][^,;:]*)",  # CamVid's label_colors.txt
        rf"(?P<id>\d+)\s*[,;:\t]\s*(?P<name>[^,;:]*[^\d,;:\s][^,;:]*?)\s*[,;\t]\s*{_COLOR}",
        rf"(?P<name>[^,;:]*[^\d,;:\s][^,;:]*?)\s*[,;:\t ]\s*{_COLOR}",  # class_dict.csv
        r"(?P<id>\d+)(\s*[,;:\t]\s*|\s+)(?P<name>[^,;:]+)",
        r"(?P<name>[^,;:]*[^\d,;:\s])(\s*[,;:\t]\s*|\s+)(?P<id>\d+)",
        r"(?P<name>(?!-\s|\d+\s*[,;:\t])(?!.*[,;\t]\s*\d)[^:;\t{}\[\]<>]+)",  # "building, edifice" is one name
    )
)
_HEADER = {
    *("id", "index", "idx", "value", "pixel value", "pixel_value", "class_id", "label_id", "class index"),
    *("name", "class", "label", "category", "class_name", "label_name", "class name"),
    *("r", "g", "b", "red", "green", "blue", "color", "colour"),
}
_WHAT_TO_WRITE = (
    "Write a text file with one name per line, class 0 first; or lines 'ID name', or 'name:R,G,B' for masks in colours"
)


@dataclasses.dataclass(frozen=True)
class LabelNames:
    """Classes by index: their names and, where a label file gives them, the RGB colours that masks show them in."""

    names: tuple[str, ...]
    colors: tuple[Color, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Entry:
    name: str
    index: int | None = None
    color: Color | None = None


def read_labels(text: str, num_classes: int, *, first_id: int = 0) -> LabelNames:
    """Returns the classes that ``config.data.labels`` gives, or as many as ``num_classes`` with made-up names.

    ``text`` is the path of a label file, or names separated by commas. ``first_id`` is what ids in the file begin with.
    A ConfigError where there are no classes, the number is another, or the file is of no known form.
    """
    if text:
        path = Path(text).expanduser()
        if "," not in text and not path.is_file():
            raise ConfigError(
                f"config.data.labels is {text!r}, which is neither a file nor several names separated by commas."
            )
        where = f"config.data.labels, {path}," if path.is_file() else "config.data.labels"
        entries = _from_file(path) if path.is_file() else [_Entry(name) for name in _cleaned(text.split(","))]
        labels = _in_order(entries, where, first_id)
    else:
        if num_classes <= 0:
            raise ConfigError(
                "config.data.labels and config.data.num_classes are both empty. Give the label names (a text "
                "file with one name per line, or names separated by commas), or at least their number."
            )
        labels = LabelNames(tuple(f"class_{index}" for index in range(num_classes)))
    count = len(labels.names)
    if num_classes and num_classes != count:
        raise ConfigError(
            f"config.data.num_classes is {num_classes}, but config.data.labels names {count} classes "
            f"({', '.join(labels.names)}). Correct one of them, or set num_classes to 0."
        )
    if not 1 <= count <= 256:
        raise ConfigError(f"config.data.labels names {count} classes; masks of 8 bits hold 1 to 256.")
    return labels


def _from_file(path: Path) -> list[_Entry]:
    try:
        text = decode_text(read_bytes(path, max_bytes=MAX_JSON_BYTES))
    except (OSError, ValueError) as error:  # a UnicodeDecodeError is one
        raise ConfigError(f"config.data.labels: cannot read {path} ({error}). {_WHAT_TO_WRITE}.") from error
    if path.suffix.lower() in (".yaml", ".yml"):
        raise ConfigError(f"config.data.labels: {path} is YAML, which is not read. {_WHAT_TO_WRITE}.")
    if path.suffix.lower() == ".json" or text.lstrip()[:1] in ("{", "["):
        return _from_json(path, text)
    lines = [line for line in _cleaned(text.splitlines()) if not line.startswith(("#", "//"))]
    if len(lines) == 1 and "," in lines[0] and not any(map(str.isdigit, lines[0].split(","))):
        lines = _cleaned(lines[0].split(","))
    elif lines and _is_header(lines[0], path):
        lines = lines[1:]
    for form in _FORMS:
        matches = [form.fullmatch(line) for line in lines]
        if all(matches):
            entries = [_entry(match.groupdict()) for match in matches]
            if not _is_by_chance(form, entries):
                return entries
    odd = next((line for line in lines if not _FORMS[-1].fullmatch(line)), lines[0] if lines else "")
    raise ConfigError(f"config.data.labels: {path} has lines of no known form, such as {odd[:80]!r}. {_WHAT_TO_WRITE}.")


def _cleaned(lines: Iterable[str]) -> list[str]:
    stripped = (unicodedata.normalize("NFC", line).strip() for line in lines)
    return [line for line in stripped if line and line != _IGNORED]


def _is_header(line: str, path: Path) -> bool:
    words = [word.strip().strip('"').lower() for word in re.split(r"[,;\t]", line)]
    return all(word in _HEADER for word in words) and (len(words) > 1 or path.suffix.lower() in (".csv", ".tsv"))


def _entry(group: dict[str, str | None]) -> _Entry:
    index, color = group.get("id"), group.get("color")
    parts = tuple(int(part) for part in re.findall(r"\d+", color)) if color else None
    name = (group["name"] or "").strip().strip('"').strip()
    return _Entry(name, None if index is None else int(index), parts)


def _is_by_chance(form: re.Pattern[str], entries: Sequence[_Entry]) -> bool:
    """Whether the number in the names 'type 1', 'type 2' was taken for an id behind them."""
    id_comes_last = form.groupindex.get("id", 0) > form.groupindex["name"]
    return id_comes_last and len({entry.name for entry in entries}) < len(entries)


def _from_json(path: Path, text: str) -> list[_Entry]:
    """A list of names, or names by id, or ids by name, perhaps as a config.json has them."""
    try:
        value = json.loads(text)
        if isinstance(value, dict):
            value = value.get("id2label") or value.get("label2id") or value.get("names") or value
        if isinstance(value, list):
            entries = [_Entry(name) for name in value]
        elif all(key.isdecimal() for key in value):
            entries = [_Entry(name, int(key)) for key, name in value.items()]
        else:
            entries = [_Entry(key, int(index)) for key, index in value.items()]
        if not all(isinstance(entry.name, str) for entry in entries):
            raise ValueError("names must be strings")
        return entries
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"config.data.labels: {path} is no JSON list of names, nor an object of names by id ({error}). "
            f"{_WHAT_TO_WRITE}."
        ) from error


def _in_order(entries: Sequence[_Entry], where: str, first_id: int) -> LabelNames:
    if all(entry.index is not None for entry in entries):
        found = sorted(entry.index for entry in entries)
        expected = list(range(first_id, first_id + len(entries)))
        if found != expected:
            hint = (
                ""
                if first_id or found != [index + 1 for index in expected]
                else (" Where masks count classes from 1 and 0 has none, set --config.data.reduce_labels=True.")
            )
            raise ConfigError(
                f"{where} has the ids {_listed(found)}, expected {first_id} … {expected[-1] if expected else 0}, "
                f"each once.{hint}"
            )
        entries = sorted(entries, key=lambda entry: entry.index)
    names, colors = tuple(entry.name for entry in entries), tuple(entry.color for entry in entries)
    for what, values in (("name", names), ("color", colors if all(colors) else ())):
        repeated = next((value for number, value in enumerate(values) if value in values[:number]), None)
        if repeated is not None:
            raise ConfigError(f"{where} has the {what} {repeated!r} more than once. Each class needs one of its own.")
    if any(max(color) > 255 for color in colors if color):
        raise ConfigError(f"{where} has a color beyond 255. Colors are R,G,B from 0 to 255.")
    return LabelNames(names, colors if all(colors) else ())


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (" …" if len(numbers) > 8 else "")
