"""Evaluates a checkpoint or pretrained weights and writes the report."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.data.loader.bad_examples import report
from flax_mnv2.errors import CheckpointError, ConfigError, DataError
from flax_mnv2.tasks.registry import Task, load_dataset, make_eval_task, processor_of
from flax_mnv2.training.config.checks import check_config
from flax_mnv2.training.evaluation import Evaluation, evaluate
from flax_mnv2.training.multihost import from_leader, leader_first
from flax_mnv2.training.parallel import check_divisible, make_parallel
from flax_mnv2.training.run_checkpoints import EMA, FOLDER_NAME, VARIABLES, Checkpoints
from flax_mnv2.training.step import make_eval_step
from flax_mnv2.weights.pretrained import from_pretrained

WEIGHTS = ("auto", "raw", "ema")


def evaluate_run(
    config: ml_collections.ConfigDict,
    *,
    workdir: str = "",
    checkpoint: str = "",
    pretrained: str = "",
    step: str = "best",
    weights: str = "auto",
    split: str = "",
    output: str = "",
    per_class: bool = False,
) -> dict[str, Any]:
    """Evaluates one model on a whole split; prints a table, writes the task's report.

    Args:
      config: the run's, or for ``pretrained`` any that names the data.
      workdir: of a training run; or
      checkpoint: one of its checkpoints, ``WORKDIR/checkpoints/STEP``; or
      pretrained: a Hugging Face folder or hub id.
      step: ``"best"``, ``"latest"`` or a number; of ``workdir`` only.
      weights: of a checkpoint, ``"ema"`` for the moving average, ``"raw"`` for the weights themselves, ``"auto"``
        for the average where the run keeps one.
      split: empty for ``config.data.eval_split``.
      output: folder for the report; empty chooses one beside the checkpoint, or ``./evaluation``.
      per_class: of a classifier, add the figures of every class (a segmentation model's are always there).

    Returns:
      The figures, as written to ``metrics.json``.

    Raises:
      UserError: bad config, data or checkpoint.
    """
    if sum(map(bool, (workdir, checkpoint, pretrained))) != 1:
        raise ConfigError("Give exactly one of --workdir, --checkpoint and --pretrained.")
    if weights not in WEIGHTS:
        raise ConfigError(f"--weights must be one of {', '.join(WEIGHTS)}; found {weights!r}.")
    if pretrained and weights != "auto":
        raise ConfigError(
            "--weights is for --workdir and --checkpoint; a run's checkpoint goes there, not --pretrained."
        )
    check_config(config)
    parallel = make_parallel(config.parallel)
    check_divisible(parallel, config.eval.batch_size, "eval.batch_size")
    split = split or config.data.eval_split
    with leader_first():  # what is not prepared yet is prepared once where hosts share a disk
        dataset = load_dataset(config.task, config.data)
        dataset.source(split)  # fails early on an unknown split

    if pretrained:
        model, variables = from_pretrained(pretrained, task=config.task)
        model_config, name, default_output = model.config, pretrained, pathlib.Path("evaluation")
        processor = processor_of(pretrained, config.task)
    else:
        checkpoints, at, folder = _find_checkpoint(workdir, checkpoint, step)
        model_config, processor = MobileNetV2Config.from_dict(checkpoints.about(at)["model"]), None
        item = _choose_weights(weights, has_ema=checkpoints.has_ema(at), where=folder / FOLDER_NAME / str(at))
        name = f"{folder / FOLDER_NAME / str(at)}{' (moving average)' if item == EMA else ''}"
        raw = "_raw" if weights == "raw" else ""
        default_output = folder / "evaluation" / f"{split}_step_{at}{raw}"
    task = make_eval_task(config, model_config, dataset, processor=processor)
    if not pretrained:
        shapes = jax.eval_shape(lambda: task.init_variables(0))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        with checkpoints:
            placed = parallel.global_view(parallel.put_state(zeros))
            variables = checkpoints.restore_variables(at, placed, item=item)
    variables = parallel.put_state(variables)

    eval_step = parallel.compile_eval_step(make_eval_step(task, axis_name=parallel.axis_name))
    if jax.process_index() == 0:
        print(f"evaluating {name} on {dataset.name}, {split}: {len(dataset.source(split))} examples", flush=True)
    evaluation = evaluate(task, parallel, eval_step, variables, dataset, split=split, keeper=task.keeper())
    metrics = task.summarize(evaluation.sums)
    figures = {
        "model": name,
        "dataset": dataset.name,
        "split": split,
        "num_examples": evaluation.num_examples,
        "num_bad_examples": evaluation.num_bad,
        **task.settings(),
        **task.to_dict(metrics, per_class=per_class),
    }
    if evaluation.bad_examples:
        print(report(evaluation.bad_examples))  # on every process, of its share
    if jax.process_index() == 0:
        print(task.format_table(metrics, per_class=per_class))
        _write_report(pathlib.Path(output or default_output), figures, evaluation, task)
    return figures


def _choose_weights(weights: str, *, has_ema: bool, where: pathlib.Path) -> str:
    """The item of a checkpoint to evaluate."""
    if weights == "ema" and not has_ema:
        raise CheckpointError(f"{where} has no moving average; its run had config.ema.decay=0. Use --weights=raw.")
    return EMA if has_ema and weights != "raw" else VARIABLES


def _find_checkpoint(workdir: str, checkpoint: str, step: str) -> tuple[Checkpoints, int, pathlib.Path]:
    """The run's checkpoints, the chosen step, and the run's folder."""
    if checkpoint:
        path = pathlib.Path(checkpoint).expanduser()
        if not path.name.isdigit() or not path.is_dir():
            raise CheckpointError(f"--checkpoint must be a folder WORKDIR/{FOLDER_NAME}/STEP; found {checkpoint}.")
        folder, step = path.parent, path.name
    else:
        folder = pathlib.Path(workdir).expanduser() / FOLDER_NAME
        if not folder.is_dir():
            raise CheckpointError(f"No checkpoints in {workdir}; expected the --workdir of a training run.")
    checkpoints = Checkpoints(folder, read_only=True)
    steps = checkpoints.steps()
    choice = {"best": checkpoints.best_step, "latest": checkpoints.latest_step}.get(step)
    at = from_leader(choice) if choice else int(step) if step.isdigit() else None
    if at not in steps:
        raise CheckpointError(
            f"No complete checkpoint {step!r} in {folder}; there are {steps or 'none'}. "
            "--step takes best, latest or one of them."
        )
    return checkpoints, at, folder.parent


def _write_report(folder: pathlib.Path, figures: dict[str, Any], evaluation: Evaluation, task: Task) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.json"
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        written = {"metrics": path, **task.write_files(folder, evaluation.sums, evaluation.kept)}
    except OSError as error:
        raise DataError(f"Cannot write the report in {folder}: {error.strerror}. Choose another --output.") from None
    for what, where in {"model": figures["model"], **written}.items():
        print(f"{what + ':':<10} {where}")
