"""Metrics on disk: one JSON object per line, and TensorBoard event files."""

import json
import pathlib
from typing import Any

import jax

from flax_mnv2.errors import DataError
from flax_mnv2.files import read_bytes, write_text
from flax_mnv2.training.logging.waiting_file import WaitingFile
from flax_mnv2.training.multihost import from_leader

METRICS_NAME = "metrics.jsonl"
EVENTS_NAME = "tensorboard"
_MAX_BYTES = 2**30  # a million lines have a tenth of it


class MetricsWriter:
    """Appends to ``metrics.jsonl`` and to event files in a folder. A context manager.

    A run that goes on from step k drops what an interrupted one wrote after k, so no line is doubled.
    ``evaluations`` are the metrics of those that there have been, by step.
    """

    def __init__(self, folder: pathlib.Path, *, resume_step: int, tolerant: bool = False):
        """Opens the files; lines of steps above ``resume_step`` are dropped. Only process 0 writes.

        Where it is ``tolerant``, a line for which there is no room is said, not raised, and written with the next.
        """
        kept = [line for line in read_metrics(folder) if line["step"] <= resume_step]
        # What shall be evaluated again, all must agree on, whatever a host's copy of the file says.
        evaluations = from_leader(lambda: [line for line in kept if line["split"] != "train"])
        self.evaluations = {line["step"]: line for line in evaluations}
        self._leads = jax.process_index() == 0
        if not self._leads:
            return
        from flax_mnv2.training.logging.event_file import EventFile

        self._path, self._tolerant, self._troubled = folder / METRICS_NAME, tolerant, False
        try:
            write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
            self._events = EventFile(folder / EVENTS_NAME, purge_step=resume_step + 1)
            self._file = WaitingFile(self._path, "ab")
        except OSError as error:
            raise DataError(
                f"Cannot write {METRICS_NAME} and {EVENTS_NAME}/ in {folder}: {error.strerror}. Choose a --workdir "
                "that you may write to, on a disk with free space."
            ) from None

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Writes the metrics of one step; ``split`` is ``train`` or the evaluated split."""
        if not self._leads:
            return
        self._file.add(json.dumps({"step": step, "split": split, **values}).encode() + b"\n")
        self._events.add_scalars(step, {f"{split}/{name}": value for name, value in values.items()})
        try:
            self._file.flush()
            self._events.flush()
            self._troubled = False
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        text = f"Cannot write {self._path} and {EVENTS_NAME}/: {error.strerror}. Free some space"
        if not self._tolerant:
            raise DataError(f"{text}; the same command goes on from the last checkpoint.") from None
        if not self._troubled:
            print(f"warning: {text}; what is missing is written then", flush=True)
        self._troubled = True

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, error_type, *_) -> None:
        if self._leads:
            for file in (self._file, self._events):
                try:
                    file.close()
                except OSError as error:
                    if error_type is None:  # else the run's own error is the one to report
                        self._failed(error)


def read_metrics(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns all whole lines of a run's metrics; one cut short by a crash, or that is none of ours, is left out."""
    path = folder / METRICS_NAME
    try:
        content = read_bytes(path, max_bytes=_MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read {path}: {error}. Move it away, or choose another --workdir.") from None
    lines = []
    for text in content.split(b"\n"):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        step = line.get("step") if isinstance(line, dict) else None
        if type(step) is int and step >= 0 and isinstance(line.get("split"), str):  # else it is none of ours
            lines.append(line)
    return lines
