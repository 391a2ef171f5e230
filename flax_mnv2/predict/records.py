"""What is kept of predictions: JSON records, and the files that a predictor writes for each photo."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from flax_mnv2.errors import DataError
from flax_mnv2.predict.inputs import result_stems
from flax_mnv2.tasks.prediction import Predictor

RECORDS_NAME = "predictions.jsonl"


class Records:
    """Makes records of predictions and writes them, with a predictor's own files, to a folder. A context manager."""

    def __init__(self, predictor: Predictor, folder: pathlib.Path | None, files: Sequence[pathlib.Path]):
        """Writes nothing yet; without a folder, which predictors that write no files allow, nothing ever.

        ``files`` are all photos that will come.
        """
        self._predictor, self._folder = predictor, folder
        self._file: TextIO | None = None
        self._stems: dict[pathlib.Path, str] = {}
        if folder is not None:
            stems = result_stems(files, folder, tuple(predictor.endings.values()))
            self._stems = dict(zip(files, stems, strict=True))

    def __enter__(self) -> Records:
        """Makes the folder and starts a new file of records; raises a DataError where that cannot be."""
        if self._folder is not None:
            with _readable_errors(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = (self._folder / RECORDS_NAME).open("w", encoding="utf-8")
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, file: pathlib.Path, prediction: Any) -> dict[str, Any]:
        """Returns the record of a photo's prediction, once everything about it is written; else raises a DataError.

        It has ``file``, ``task`` and the fields that the predictor gives.
        """
        with _readable_errors(self._folder):
            fields = self._predictor.record(prediction, self._own_files(file))
            record = {"file": str(file), "task": self._predictor.task, **fields}
            if self._file is not None:
                self._file.write(json.dumps(record) + "\n")
                self._file.flush()
        return record

    def format(self, record: Mapping[str, Any]) -> str:
        """Returns a record as lines to read."""
        return "\n  ".join([record["file"], *self._predictor.format_record(record)])

    def _own_files(self, file: pathlib.Path) -> dict[str, pathlib.Path]:
        if self._folder is None:
            return {}
        stem = self._stems[file]
        return {name: self._folder / f"{stem}{ending}" for name, ending in self._predictor.endings.items()}


@contextlib.contextmanager
def _readable_errors(folder: pathlib.Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"Cannot write in {folder}: {error.strerror or error}. Choose another --output, on a disk with free space."
        ) from None
