"""Photos → the most probable classes."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flax_mnv2.errors import ConfigError, DataError
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.models import MobileNetV2ForImageClassification
from flax_mnv2.models.mobilenet_v2 import MIN_SIZE_PX
from flax_mnv2.tasks.prediction import Example, Predictor, check_sides, outputs_of


@dataclasses.dataclass(frozen=True)
class ClassProbability:
    """One class of a prediction; ``label`` may repeat among the classes, ``index`` does not."""

    index: int
    label: str
    probability: float


class ClassificationPredictor(Predictor):
    """Preprocesses as the model's processor says; gives the ``top`` classes, the most probable first.

    A ConfigError names a model without a classifier, or of another ``problem_type`` (a single label means regression),
    and a processor that makes pictures beyond ``prediction.MAX_SIDE_PX``.

    Class attributes:
      problem_type: of the models that this is for.
      activation: what makes the answers (N, C) of logits.
    """

    task = "classification"
    problem_type: ClassVar[str] = "single_label_classification"
    activation: ClassVar[Callable[[jax.Array], jax.Array]] = staticmethod(jax.nn.softmax)

    def __init__(
        self,
        model: MobileNetV2ForImageClassification,
        variables: Mapping[str, Any],
        processor: MobileNetV2ImageProcessor,
        *,
        top: int = 5,
        threshold: float | None = None,
    ):
        del threshold  # the classes exclude each other
        num_labels, problem_type = model.config.num_labels, model.config.problem_type
        if num_labels == 0:
            raise ConfigError("This model has num_labels=0, features and no classifier: there is nothing to predict.")
        if (problem_type or ("regression" if num_labels == 1 else self.problem_type)) != self.problem_type:
            raise ConfigError(
                f"This model is for another task (problem_type={problem_type!r}, num_labels={num_labels}) than "
                f"{self.task}. Leave out --task."
            )
        for name, used in (("size", processor.do_resize), ("crop_size", processor.do_center_crop)):
            if used:
                check_sides(getattr(processor, name).values(), f"{name} in preprocessor_config.json")
        self._processor, self._labels, self._top = processor, model.config.id2label, top
        self._outputs = outputs_of(model, variables)

        @jax.jit
        def answers(logits: jax.Array) -> jax.Array:
            # With config.pool_window there is a map of logits; the classifier is linear, so their mean is that of
            # the mean features.
            return self.activation(logits if logits.ndim == 2 else jnp.mean(logits, axis=(1, 2)))

        self._answers = answers

    def prepare(self, photo: np.ndarray) -> Example:
        """Returns what the processor makes of (H, W, 3) uint8."""
        pixels = self._processor.preprocess(photo, input_data_format="channels_last").pixel_values[0]
        if min(pixels.shape[:2]) < MIN_SIZE_PX:
            raise DataError(
                f"The processor makes {pixels.shape[0]}×{pixels.shape[1]} pixels of an image of {photo.shape[0]}×"
                f"{photo.shape[1]}; the network needs {MIN_SIZE_PX} or more each way. Check preprocessor_config.json."
            )
        return Example(pixels)

    def compute(self, pixels: np.ndarray) -> np.ndarray:
        """Returns what ``activation`` makes of the logits, (N, C) float32, for (N, h, w, 3)."""
        return np.asarray(self._answers(self._outputs(pixels).logits))

    def finish(self, example: Example, answer: np.ndarray) -> tuple[ClassProbability, ...]:
        """Returns the best classes of (C,) probabilities; of equal ones the lower index comes first."""
        del example
        best = np.argsort(-answer, kind="stable")[: self._top].tolist()
        return tuple(ClassProbability(index, self._labels[index], float(answer[index])) for index in best)

    def record(self, prediction: Sequence[ClassProbability], files: Mapping[str, pathlib.Path]) -> dict[str, Any]:
        """Returns ``predictions``, each with ``index``, ``label`` and ``probability``."""
        del files
        return {"predictions": [dataclasses.asdict(item) for item in prediction]}

    def format_record(self, record: Mapping[str, Any]) -> list[str]:
        """Returns a line per class."""
        return [f"{item['probability']:.4f}  {item['label']} ({item['index']})" for item in record["predictions"]]
