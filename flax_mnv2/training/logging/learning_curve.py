"""The picture of a run: its losses and its evaluations by step."""

import pathlib
from collections.abc import Mapping

import jax

from flax_mnv2.training.logging.metrics_writer import read_metrics
from flax_mnv2.visualize.plots import save_curves

CURVE_NAME = "learning_curve.png"


def save_curve(folder: pathlib.Path, titles: Mapping[str, str]) -> pathlib.Path | None:
    """Draws ``metrics.jsonl`` of a workdir into it, and returns the file; process 0 does, where there are two lines.

    ``titles`` are the metrics of evaluations to draw, with words for a person. A disk without room leaves it out: the
    run is done, and the numbers lie in ``metrics.jsonl``.
    """
    if jax.process_index() != 0:
        return None
    lines = read_metrics(folder)
    losses = [(line["step"], line["loss"]) for line in lines if line["split"] == "train" and "loss" in line]
    evaluations = [line for line in lines if line["split"] != "train"]
    metrics = {
        title: [(line["step"], line[name]) for line in evaluations if name in line] for name, title in titles.items()
    }
    if len(losses) < 2:
        return None
    path = folder / CURVE_NAME
    try:
        save_curves(path, {"training loss": losses}, {title: points for title, points in metrics.items() if points})
    except OSError as error:
        print(f"warning: Cannot write {path}: {error.strerror}", flush=True)
        return None
    return path
