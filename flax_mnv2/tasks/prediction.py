"""What predicts for photos, as an abstract class."""

from __future__ import annotations

import abc
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import numpy as np

from flax_mnv2.errors import ConfigError

if TYPE_CHECKING:
    from flax_mnv2.export.network import ExportedNetwork

MAX_SIDE_PX = 2049  # that a model's files may ask for: eight photos then take 0.4 GB before the network has begun


@dataclasses.dataclass(frozen=True)
class Example:
    """One photo made ready: (h, w, 3) float32 pixels for the network, and what the predictor needs to finish."""

    pixels: np.ndarray
    context: Any = None


def outputs_of(model: nn.Module | ExportedNetwork, variables: Mapping[str, Any]) -> Callable[[np.ndarray], Any]:
    """Returns a function from pixels (N, h, w, 3) to a model's output: compiled, or a file's by its runtime."""
    if not isinstance(model, nn.Module):
        return model
    placed, compute = jax.device_put(variables), jax.jit(model.apply)
    return lambda pixels: compute(placed, pixels)


class Predictor(abc.ABC):
    """Predicts for photos.

    Class attributes:
      task: name of the job, as records have it.
      endings: of the files that ``record`` writes for a photo, by the record's field; empty where it writes none.
    """

    task: ClassVar[str]
    endings: ClassVar[Mapping[str, str]] = {}

    @abc.abstractmethod
    def prepare(self, photo: np.ndarray) -> Example:
        """Makes (H, W, 3) uint8 an example; raises a DataError for a photo that does not fit. Called in threads."""

    @abc.abstractmethod
    def compute(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the network's answers to (N, h, w, 3), N of them along the first axis."""

    @abc.abstractmethod
    def finish(self, example: Example, answer: np.ndarray) -> Any:
        """Returns the prediction for one example from its answer."""

    @abc.abstractmethod
    def record(self, prediction: Any, files: Mapping[str, pathlib.Path]) -> dict[str, Any]:
        """Writes the ``files`` of a prediction, by the names in ``endings``, and returns its fields for JSON."""

    @abc.abstractmethod
    def format_record(self, record: Mapping[str, Any]) -> Sequence[str]:
        """Returns what ``record`` gave as lines to read."""


def check_sides(sides: Iterable[int], source: str) -> None:
    """Raises a ConfigError if a setting beside the weights, ``source``, asks for sides above ``MAX_SIDE_PX``."""
    largest = max(sides, default=0)
    if largest > MAX_SIDE_PX:
        raise ConfigError(
            f"{source} asks for pictures of {largest:,} pixels a side; predictions are made with at most "
            f"{MAX_SIDE_PX:,}. Set it to the size that the model was trained with."
        )
