"""What is kept and shown of predictions: JSON records, pictures, lines to read."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from flax_mnv2.errors import DataError
from flax_mnv2.predict.inputs import result_stems
from flax_mnv2.tasks.classification.predictor import ClassProbability
from flax_mnv2.tasks.segmentation.predictor import Segmentation
from flax_mnv2.visualize import save_mask, save_overlay, share_text

RECORDS_NAME = "predictions.jsonl"
OVERLAY_ENDING, MASK_ENDING = "_segmentation.png", "_mask.png"


class Records:
    """Makes records of predictions and writes them, with pictures of segmentations, to a folder. A context manager."""

    def __init__(self, folder: pathlib.Path | None, files: Sequence[pathlib.Path]):
        """``folder`` is made; None writes nothing, which classifications allow. ``files`` are all that will come."""
        self._folder = folder
        self._file: TextIO | None = None
        self._stems: dict[pathlib.Path, str] = {}
        if folder is not None:
            stems = result_stems(files, folder, (OVERLAY_ENDING, MASK_ENDING))
            self._stems = dict(zip(files, stems, strict=True))

    def __enter__(self) -> Records:
        """Starts a new file of records.

        Raises:
          DataError: the folder cannot be made or written.
        """
        if self._folder is not None:
            with _readable_errors(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = (self._folder / RECORDS_NAME).open("w", encoding="utf-8")
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, file: pathlib.Path, prediction: Segmentation | Sequence[ClassProbability]) -> dict[str, Any]:
        """The record of a file's prediction, once everything about it is written.

        Returns:
          ``file``, ``task``, and for a classification ``predictions`` (``index``, ``label``, ``probability`` each),
          for a segmentation ``classes`` (``index``, ``label``, ``share``) with the paths ``overlay`` and ``mask``.

        Raises:
          DataError: it cannot be written.
        """
        if isinstance(prediction, Segmentation):
            record = self._segmentation(file, prediction)
        else:
            items = [{"index": item.index, "label": item.label, "probability": item.probability} for item in prediction]
            record = {"file": str(file), "task": "classification", "predictions": items}
        if self._file is not None:
            with _readable_errors(self._folder):
                self._file.write(json.dumps(record) + "\n")
                self._file.flush()
        return record

    def _segmentation(self, file: pathlib.Path, prediction: Segmentation) -> dict[str, Any]:
        stem = self._stems[file]
        overlay, mask = self._folder / f"{stem}{OVERLAY_ENDING}", self._folder / f"{stem}{MASK_ENDING}"
        classes = [(item.index, item.label, item.share) for item in prediction.classes]
        with _readable_errors(self._folder):
            save_overlay(overlay, prediction.photo, prediction.mask, classes)
            save_mask(mask, prediction.mask)
        return {
            "file": str(file),
            "task": "segmentation",
            "classes": [{"index": index, "label": label, "share": share} for index, label, share in classes],
            "overlay": str(overlay),
            "mask": str(mask),
        }


def format_record(record: dict[str, Any]) -> str:
    """A prediction as lines to read."""
    lines = [record["file"]]
    if record["task"] == "classification":
        lines += [f"  {item['probability']:.4f}  {item['label']} ({item['index']})" for item in record["predictions"]]
    else:
        lines += [f"  {share_text(item['share']):>7}  {item['label']}" for item in record["classes"]]
        lines += [f"  overlay: {record['overlay']}", f"  mask:    {record['mask']}"]
    return "\n".join(lines)


@contextlib.contextmanager
def _readable_errors(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"Cannot write in {folder}: {error.strerror or error}. Choose another --output, on a disk with free space."
        ) from None
