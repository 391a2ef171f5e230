"""The jobs that there are. A new one is a subclass of ``base.Task`` and a row here."""

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import ConfigError
from flax_mnv2.tasks.base import Task
from flax_mnv2.tasks.classification.task import ClassificationTask
from flax_mnv2.tasks.detection.task import DetectionTask
from flax_mnv2.tasks.multi_label.task import MultiLabelTask
from flax_mnv2.tasks.regression.task import RegressionTask
from flax_mnv2.tasks.segmentation.task import SegmentationTask

TASKS: dict[str, type[Task]] = {
    "segmentation": SegmentationTask,
    "detection": DetectionTask,
    "classification": ClassificationTask,
    "multi_label_classification": MultiLabelTask,
    "regression": RegressionTask,
}


def get_task(name: str) -> type[Task]:
    """Returns the class of ``config.task``, or raises a ConfigError that names those there are."""
    if name not in TASKS:
        raise ConfigError(f"config.task must be one of {', '.join(map(repr, TASKS))}; found {name!r}.")
    return TASKS[name]


def task_for(model: str, config: MobileNetV2Config) -> str:
    """Returns the name of the job that a model does, by its kind, such as ``"classification"``, and its config.

    A classifier's ``problem_type`` says which; without one it is regression for a single label, as for Hugging Face.
    """
    problem = config.problem_type or ("regression" if config.num_labels == 1 else model)
    return problem if model == ClassificationTask.name and problem in TASKS else model
