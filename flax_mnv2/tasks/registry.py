"""The jobs that there are. A new one is a subclass of ``base.Task`` and a row here."""

from flax_mnv2.errors import ConfigError
from flax_mnv2.tasks.base import Task
from flax_mnv2.tasks.classification.task import ClassificationTask
from flax_mnv2.tasks.segmentation.task import SegmentationTask

TASKS: dict[str, type[Task]] = {
    "segmentation": SegmentationTask,
    "classification": ClassificationTask,
}


def get_task(name: str) -> type[Task]:
    """Returns the class of ``config.task``, or raises a ConfigError that names those there are."""
    if name not in TASKS:
        raise ConfigError(f"config.task must be one of {', '.join(map(repr, TASKS))}; found {name!r}.")
    return TASKS[name]
