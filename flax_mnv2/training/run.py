"""What a run is made of, before its first step: checked config, data set, task, optimizer and compiled steps."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import optax

from flax_mnv2.data.datasets.records import Dataset
from flax_mnv2.errors import ConfigError
from flax_mnv2.tasks.base import Task
from flax_mnv2.tasks.registry import get_task
from flax_mnv2.training.config.checks import check_config, check_parts
from flax_mnv2.training.config.defaults import in_steps
from flax_mnv2.training.inputs import record_inputs
from flax_mnv2.training.multihost import check_enough_examples, leader_first
from flax_mnv2.training.optimizer import configured_optimizer
from flax_mnv2.training.parallel import Parallel, check_divisible, make_parallel
from flax_mnv2.training.step import configured_train_step, make_eval_step
from flax_mnv2.training.workdir import open_workdir


@dataclasses.dataclass(frozen=True)
class Run:
    """All of a run that does not change from step to step."""

    config: ml_collections.ConfigDict  # durations in steps
    workdir: pathlib.Path
    task: Task
    dataset: Dataset
    parallel: Parallel
    optimizer: optax.GradientTransformation
    train_step: Callable  # compiled, (state, batch) -> (state, metrics)
    eval_step: Callable  # compiled, (variables, batch) -> (sums, examples)
    about: dict[str, Any]  # JSON that lies beside every checkpoint; its config has durations as they were given
    sizes: dict[str, int]  # number of examples by what they are for, train and eval


def prepare_run(
    config: ml_collections.ConfigDict, workdir: str | pathlib.Path, parallel: Parallel | None = None
) -> Run:
    """Checks everything that can be checked before the first expensive step, then opens data and builds the model.

    The workdir is made if it is not there. ``parallel`` None follows ``config.parallel`` on all devices.
    """
    check_config(config)
    parallel = parallel or make_parallel(
        config.parallel, per_device=not config.batch_norm.sync, shard_optimizer=config.shard_optimizer_state
    )
    check_batches(config, parallel)
    if config.checkpoint.on_error == "continue" and jax.process_count() > 1:
        raise ConfigError(
            "config.checkpoint.on_error='continue' is for runs of one process: several save together, and one that "
            "cannot would leave the others waiting. Use 'stop'; the run goes on with the same command."
        )
    workdir = open_workdir(workdir, config)
    with leader_first():  # what is not prepared yet is prepared once where hosts share a disk
        dataset = get_task(config.task).load_dataset(config.data)
        splits = {"train": config.data.train_split, "eval": config.data.eval_split}
        sizes = {what: len(dataset.source(split)) for what, split in splits.items()}
    check_enough_examples(sizes["train"], config.data.train_split)
    record_inputs(workdir, config, dataset)

    job, given = get_task(config.task), config.to_dict()
    config = job.filled_in(config, dataset)
    task = job.for_training(config, dataset.labels, axis_name=parallel.axis_name)
    about = {"config": given, "model": task.model.config.to_dict(), "processor": task.processor.to_dict()}
    config = in_steps(config, sizes["train"])
    schedule, optimizer = configured_optimizer(config)
    train_step = parallel.compile_train_step(configured_train_step(config, task, schedule, optimizer, parallel))
    eval_step = parallel.compile_eval_step(make_eval_step(task, axis_name=parallel.axis_name))
    return Run(config, workdir, task, dataset, parallel, optimizer, train_step, eval_step, about, sizes)


def check_batches(config: ml_collections.ConfigDict, parallel: Parallel) -> None:
    """Raises a ConfigError unless the batches of training and evaluation divide by devices, processes and parts."""
    check_divisible(parallel, config.batch_size, "batch_size")
    check_divisible(parallel, config.eval.batch_size, "eval.batch_size")
    check_parts(config, len(parallel.devices))
