"""The models as users have them: the networks of ``flax_mnv2.models``, which also load and save themselves."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import flax.linen as nn

from flax_mnv2 import models
from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor


class MobileNetV2PreTrainedModel:
    """What ``MobileNetV2Model``, ``…ForImageClassification``, ``…ForSemanticSegmentation`` and ``…Detection`` share.

    A subclass of one of these has ``from_pretrained`` and ``save_pretrained`` for the network that it inherits.
    """

    config_class: ClassVar[type[MobileNetV2Config]] = MobileNetV2Config
    base_model_prefix: ClassVar[str] = "mobilenet_v2"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> tuple[Self, dict[str, Any]]:
        """Returns a model of this class and its variables; arguments and errors as for ``flax_mnv2.from_pretrained``.

        ``task`` follows from the class.
        """
        from flax_mnv2.weights import pretrained  # which names these classes

        return pretrained.load(cls, pretrained_model_name_or_path, **options)

    def save_pretrained(
        self,
        folder: str | pathlib.Path,
        variables: Mapping[str, Any],
        processor: MobileNetV2ImageProcessor | None = None,
        *,
        layout: str = "hf",
    ) -> None:
        """Writes the model to a folder; arguments and errors as for ``flax_mnv2.save_pretrained``."""
        from flax_mnv2.weights import pretrained

        pretrained.save_pretrained(folder, self, variables, processor, layout=layout)


class MobileNetV2Model(MobileNetV2PreTrainedModel, models.MobileNetV2Model):
    """``flax_mnv2.models.MobileNetV2Model``, which loads and saves itself."""


class MobileNetV2ForImageClassification(MobileNetV2PreTrainedModel, models.MobileNetV2ForImageClassification):
    """``flax_mnv2.models.MobileNetV2ForImageClassification``, which loads and saves itself."""


class MobileNetV2ForSemanticSegmentation(MobileNetV2PreTrainedModel, models.MobileNetV2ForSemanticSegmentation):
    """``flax_mnv2.models.MobileNetV2ForSemanticSegmentation``, which loads and saves itself."""


class MobileNetV2ForObjectDetection(MobileNetV2PreTrainedModel, models.MobileNetV2ForObjectDetection):
    """``flax_mnv2.models.MobileNetV2ForObjectDetection``, which loads and saves itself, as ``layout="flax"``."""


MODEL_CLASSES: dict[str, type[nn.Module]] = {  # by task
    "backbone": MobileNetV2Model,
    "classification": MobileNetV2ForImageClassification,
    "segmentation": MobileNetV2ForSemanticSegmentation,
    "detection": MobileNetV2ForObjectDetection,
}


def task_of_class(model_class: type) -> str | None:
    """Returns the task of a class of models or of a subclass, of ``flax_mnv2.models`` too; None of anything else."""
    networks = {task: getattr(models, known.__name__) for task, known in MODEL_CLASSES.items()}
    return next((task for task, network in networks.items() if issubclass(model_class, network)), None)
