"""What a preparation notes beside the examples: a digest of each split, and the files that were left out."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flax_mnv2.errors import ConfigError, DataError

DIGESTS, LEFT_OUT, DECODING = "digests", "left_out", "decoding"  # in the metadata of a prepared data set
BOXES = "boxes"  # beside the splits in what is left out: boxes of images that are kept
_NAMES = ("file_name", "image_id")  # features that say where an example lay, not what it is
_SHOWN = 200  # messages on files in one error
_ADVICE = "out: --config.data.bad_examples=skip, up to --config.data.max_bad_examples of them."

Outcome = dict[str, Any] | DataError  # an example, or why there is none


def new_notes(decoding: str) -> dict[str, Any]:
    """Returns the notes of a data set that is not prepared yet, JSON; ``decoding`` is a rule of ``data.decode``."""
    return {DIGESTS: {}, LEFT_OUT: {}, DECODING: decoding}


def max_left_out(data: Mapping[str, Any]) -> int:
    """Returns how many files ``config.data`` lets a preparation leave out; none unless it says ``skip``."""
    action = data.get("bad_examples") or "fail"
    if action not in ("fail", "skip"):
        raise ConfigError(f"config.data.bad_examples must be one of 'fail', 'skip'; found {action!r}.")
    return data.get("max_bad_examples", 100) if action == "skip" else 0


def images_and_holdout(name: str, data: Mapping[str, Any]) -> tuple[Path, float]:
    """Returns of ``config.data`` the path of the images, and the fraction of train to hold out (default 0.1; 0: none).

    A ConfigError where the data set ``name`` is given no path, or no fraction.
    """
    archive, holdout = data.get("archive") or "", data.get("holdout", 0.1)
    if not archive:
        raise ConfigError(
            f"config.data.archive is empty, but {name} needs the path of a folder, tar or zip of images. Set "
            "--config.data.archive=PATH."
        )
    if not 0 <= holdout < 1:
        raise ConfigError(f"config.data.holdout is {holdout}, expected a fraction from 0 to below 1, such as 0.1.")
    return Path(archive).expanduser().resolve(), holdout


def noted(
    splits: Mapping[str, Iterable[Outcome]], notes: dict[str, Any], check: Callable[[], None]
) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    """Returns the numbered examples of every split, without what is wrong, and writes ``notes`` as they are taken.

    ``check`` is called after the last one, so that an error can name all files at once. A DataError where nothing
    remains of a split.
    """
    last = list(splits)[-1]
    return {
        split: _noted(split, outcomes, notes, check if split == last else None) for split, outcomes in splits.items()
    }


def _noted(
    split: str, outcomes: Iterable[Outcome], notes: dict[str, Any], check: Callable[[], None] | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    digest, count, wrong = hashlib.sha256(), 0, []
    for outcome in outcomes:
        if isinstance(outcome, DataError):
            wrong.append(str(outcome))
            continue
        _add(digest, outcome)
        yield count, outcome
        count += 1
    notes[DIGESTS][split] = digest.hexdigest()
    if wrong:
        notes[LEFT_OUT][split] = wrong
        if not count:
            raise DataError(f"Nothing remains of the split {split}: {_listed(wrong)}")
    if check is not None:
        check()


def _add(digest: Any, example: Mapping[str, Any]) -> None:
    for name in sorted(example.keys() - set(_NAMES)):
        value = example[name]
        content = json.dumps(value) if isinstance(value, list) else value
        content = content.encode() if isinstance(content, str) else content
        content = content if isinstance(content, bytes) else np.asarray(content).tobytes()
        digest.update(f"{name} {len(content)} ".encode())
        digest.update(content)


def check_left_out(left_out: Mapping[str, Sequence[str]], limit: int, *, folder: str = "") -> None:
    """Raises a DataError that names the files (and ``BOXES``) left out of all splits, if they are more than ``limit``.

    ``folder`` is that of a data set which lies prepared without them.
    """
    what = _what(left_out)
    wrong = list(dict.fromkeys(message for messages in left_out.values() for message in messages))
    if len(wrong) <= limit:
        return
    advice = "Repair them, or allow more with --config.data.max_bad_examples."
    if not limit:
        advice = f"{'Correct this, or' if BOXES in left_out else 'Or'} leave such {what} {_ADVICE}"
    if folder:
        advice += f" {folder} was prepared without them: delete it once they are mended."
    if len(wrong) == 1:
        raise DataError(f"{wrong[0]} {advice}")
    beyond = f", more than config.data.max_bad_examples = {limit}" if limit else ""
    raise DataError(f"{len(wrong)} {what} cannot be used{beyond}:{_listed(wrong)}\n{advice}")


def left_out_of(builder: Any, limit: int) -> dict[str, tuple[str, ...]]:
    """Returns by split what is wrong with the files that a prepared data set lacks; errors as of `check_left_out`."""
    left_out = (builder.info.metadata or {}).get(LEFT_OUT, {})
    check_left_out(left_out, limit, folder=str(builder.data_dir))
    return {split: tuple(messages) for split, messages in left_out.items()}


def report_left_out(left_out: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns lines about files that were left out; none where there are none."""
    count = sum(map(len, left_out.values()))
    if not count:
        return []
    what = "bad file was" if count == 1 and BOXES not in left_out else f"bad {_what(left_out)} were"
    lines = [f"{count} {what} left out when the data was prepared:"]
    return lines + [f"  {split}: {message}" for split, messages in left_out.items() for message in messages[:_SHOWN]]


def _what(left_out: Mapping[str, Sequence[str]]) -> str:
    return "boxes or images" if BOXES in left_out else "files"


def _listed(messages: Sequence[str]) -> str:
    more = f"\n  … and {len(messages) - _SHOWN} more" if len(messages) > _SHOWN else ""
    return "".join(f"\n  {message}" for message in messages[:_SHOWN]) + more
