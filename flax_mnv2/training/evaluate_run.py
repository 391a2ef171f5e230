"""Evaluates a checkpoint or pretrained weights and writes the report."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.data.load import load_segmentation
from flax_mnv2.errors import CheckpointError, ConfigError, DataError
from flax_mnv2.metrics import SegmentationMetrics
from flax_mnv2.pretrained import from_pretrained
from flax_mnv2.tasks.segmentation import SegmentationTask, check_labels
from flax_mnv2.training.checkpoint import FOLDER_NAME, Checkpoints
from flax_mnv2.training.evaluation import Evaluation, evaluate
from flax_mnv2.training.parallel import check_divisible, make_parallel
from flax_mnv2.training.run_config import check_config
from flax_mnv2.training.steps import make_eval_step


def evaluate_run(
    config: ml_collections.ConfigDict,
    *,
    workdir: str = "",
    checkpoint: str = "",
    pretrained: str = "",
    step: str = "best",
    split: str = "",
    output: str = "",
) -> dict[str, Any]:
    """Evaluates one model on a whole split; prints a table, writes JSON and two pictures.

    Args:
      config: the run's, or for ``pretrained`` any that names the data.
      workdir: of a training run; or
      checkpoint: one of its checkpoints, ``WORKDIR/checkpoints/STEP``; or
      pretrained: a Hugging Face folder or hub id.
      step: ``"best"``, ``"latest"`` or a number; of ``workdir`` only.
      split: empty for ``config.data.eval_split``.
      output: folder for the report; empty chooses one beside the checkpoint, or ``./evaluation``.

    Returns:
      The figures, as written to ``metrics.json``.

    Raises:
      UserError: bad config, data or checkpoint.
    """
    if sum(map(bool, (workdir, checkpoint, pretrained))) != 1:
        raise ConfigError("Give exactly one of --workdir, --checkpoint and --pretrained.")
    check_config(config)
    parallel = make_parallel(config.parallel)
    check_divisible(parallel, config.eval.batch_size, "eval.batch_size")
    dataset = load_segmentation(config.data)
    split = split or config.data.eval_split
    dataset.source(split)  # fails early on an unknown split

    if pretrained:
        model, variables = from_pretrained(pretrained, task="segmentation")
        model_config, name, default_output = model.config, pretrained, pathlib.Path("evaluation")
    else:
        checkpoints, at, folder = _find_checkpoint(workdir, checkpoint, step)
        model_config = MobileNetV2Config.from_dict(checkpoints.about(at)["model"])
        name, default_output = (
            str(folder / FOLDER_NAME / str(at)),
            folder / "evaluation" / f"{split}_step_{at}",
        )
    check_labels(model_config, dataset)
    task = SegmentationTask(config, model_config, axis_name=parallel.axis_name)
    if not pretrained:
        shapes = jax.eval_shape(lambda: task.init_variables(0))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        with checkpoints:
            variables = checkpoints.restore_variables(at, parallel.put_state(zeros))
    variables = parallel.put_state(variables)

    eval_step = parallel.compile_eval_step(make_eval_step(task, axis_name=parallel.axis_name))
    print(f"evaluating {name} on {dataset.name}, {split}: {len(dataset.source(split))} examples", flush=True)
    evaluation = evaluate(
        task, parallel, eval_step, variables, dataset, split=split, num_pictures=config.eval.num_pictures
    )
    metrics = task.summarize(evaluation.sums)
    figures = {
        "model": name,
        "dataset": dataset.name,
        "split": split,
        "num_examples": evaluation.num_examples,
        "output_stride": task.eval_model.config.output_stride,
        "scales": list(config.eval.scales),
        "flip": config.eval.flip,
        **metrics.to_dict(task.labels),
    }
    if jax.process_index() == 0:
        print(format_table(metrics, task.labels))
        _write_report(pathlib.Path(output or default_output), figures, evaluation, task)
    return figures


def format_table(metrics: SegmentationMetrics, labels: tuple[str, ...]) -> str:
    """The figures as an aligned table for a terminal; a class that does not occur shows a dash."""
    width = max(len("mean class accuracy"), *map(len, labels))
    rows = [
        *((label, "-" if value != value else f"{value:.4f}") for label, value in zip(labels, metrics.iou, strict=True)),
        ("mean IoU", f"{metrics.mean_iou:.4f}"),
        ("pixel accuracy", f"{metrics.pixel_accuracy:.4f}"),
        ("mean class accuracy", f"{metrics.mean_class_accuracy:.4f}"),
    ]
    lines = [f"{name:<{width}}  {value:>6}" for name, value in rows]
    rule = "-" * (width + 8)
    return "\n".join([f"{'class':<{width}}  {'IoU':>6}", rule, *lines[: len(labels)], rule, *lines[len(labels) :]])


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
    at = choice() if choice else int(step) if step.isdigit() else None
    if at not in steps:
        raise CheckpointError(
            f"No complete checkpoint {step!r} in {folder}; there are {steps or 'none'}. "
            "--step takes best, latest or one of them."
        )
    return checkpoints, at, folder.parent


def _write_report(
    folder: pathlib.Path, figures: dict[str, Any], evaluation: Evaluation, task: SegmentationTask
) -> None:
    from flax_mnv2.visualize import save_confusion_matrix, save_predictions

    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        save_confusion_matrix(folder / "confusion_matrix.png", evaluation.sums, task.labels)
        if evaluation.pictures:
            save_predictions(
                folder / "predictions.png", evaluation.pictures, task.labels, ignore_label=task.ignore_label
            )
    except OSError as error:
        raise DataError(f"Cannot write the report in {folder}: {error.strerror}. Choose another --output.") from None
    print(f"model:     {figures['model']}")
    print(f"metrics:   {folder / 'metrics.json'}")
    print(f"confusion: {folder / 'confusion_matrix.png'}")
    if evaluation.pictures:
        print(f"pictures:  {folder / 'predictions.png'}")
