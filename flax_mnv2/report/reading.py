"""What lies in the folder of a run, read for its report; nothing in it is changed."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flax_mnv2.checkpoint.folder import FOLDER_NAME, CheckpointFolder
from flax_mnv2.errors import ConfigError, DataError
from flax_mnv2.files import read_bytes, read_json
from flax_mnv2.tasks.base import Task
from flax_mnv2.tasks.judgement import Judgement
from flax_mnv2.tasks.registry import get_task
from flax_mnv2.tasks.rules import flatten, jsonable
from flax_mnv2.training.config.defaults import default_config, in_steps
from flax_mnv2.training.inputs import INPUTS_NAME
from flax_mnv2.training.logging.metrics_writer import read_metrics
from flax_mnv2.training.logging.run_record import RECORD_NAME
from flax_mnv2.training.workdir import CONFIG_NAME, config_for_evaluation, read_config, read_object

EVALUATIONS = "evaluation"  # the folder in which eval.py puts one for each evaluation
_PREDICTIONS, _METRICS = "predictions.jsonl", "metrics.json"
_MAX_PREDICTION_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What ``eval.py`` wrote on one model and split."""

    folder: pathlib.Path
    metrics: Mapping[str, Any]  # of metrics.json

    def pictures(self) -> list[pathlib.Path]:
        """Returns its PNG files by name."""
        return sorted(self.folder.glob("*.png"))

    def judgements(self, task: type[Task]) -> list[Judgement]:
        """Returns how right each example is, the worst first; none where nothing was written of single examples.

        A DataError where the file is damaged or too large.
        """
        path = self.folder / _PREDICTIONS
        if not path.is_file():
            return []
        try:
            content = read_bytes(path, max_bytes=_MAX_PREDICTION_BYTES)
            judged = task.judged([json.loads(line) for line in content.splitlines()])
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise DataError(f"{path} cannot be used: {type(error).__name__}, {error}") from None
        return sorted(judged, key=lambda one: -one.error)


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run as its workdir tells it."""

    path: pathlib.Path
    task: type[Task]
    config: Mapping[str, Any]  # by dotted name, as JSON gives it
    defaults: Mapping[str, Any]  # of the same task
    num_steps: int | None  # None where it follows from epochs of data that nothing is known of
    lines: Sequence[Mapping[str, Any]]  # of metrics.jsonl
    inputs: Mapping[str, Any]  # of inputs.json
    record: Mapping[str, Any]  # of training.logging.run_record; empty where an earlier version began the run
    checkpoints: Sequence[int]  # steps
    evaluations: Sequence[Evaluation]  # the newest first

    @property
    def step(self) -> int:
        """The last step that anything is known of."""
        return max([*(line["step"] for line in self.lines), *self.checkpoints], default=0)

    @property
    def evaluated(self) -> list[Mapping[str, Any]]:
        """The lines of evaluations in the course of training."""
        return [line for line in self.lines if line["split"] != "train"]

    @property
    def scored(self) -> str:
        """The metric that checkpoints are ranked by, of the moving average where there is one."""
        return f"{'ema_' if self.config.get('ema.decay') else ''}{self.task.best_metric}"

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The line of the best evaluation; of equal ones the last."""
        scored = [line for line in self.evaluated if finite(line.get(self.scored))]
        return max(reversed(scored), key=lambda line: line[self.scored], default=None)

    def title(self, metric: str) -> str:
        """Returns a metric's name in words."""
        plain = metric.removeprefix("ema_")
        words = self.task.titles.get(plain, plain.replace("_", " ").replace("iou", "IoU"))
        return words if plain == metric else f"{words}, moving average"

    def main_evaluation(self) -> Evaluation | None:
        """Returns the evaluation to show: of the best checkpoint on the run's own split, else the newest."""
        wanted = f"{self.config.get('data.eval_split')}_step_{self.best['step']}" if self.best else ""
        return next((one for one in self.evaluations if one.folder.name == wanted), next(iter(self.evaluations), None))


def finite(value: Any) -> bool:
    """Returns whether a value of a JSON file is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_run(workdir: str | pathlib.Path) -> RunFolder:
    """Reads a workdir.

    A ConfigError where it is no run's, or its config is damaged or of a task that is not known; a DataError where its
    metrics cannot be read.
    """
    path = pathlib.Path(workdir).expanduser()
    recorded = _recorded(path)
    config = config_for_evaluation(None, {}, workdir=str(path))
    inputs = _object(path / INPUTS_NAME)
    return RunFolder(
        path=path.resolve(),
        task=get_task(config.task),
        config=jsonable(flatten(recorded)),
        defaults=jsonable(flatten(default_config(config.task))),
        num_steps=_num_steps(config, inputs),
        lines=read_metrics(path),
        inputs=inputs,
        record=_object(path / RECORD_NAME),
        checkpoints=CheckpointFolder(path / FOLDER_NAME).steps(),
        evaluations=_evaluations(path / EVALUATIONS),
    )


def _recorded(path: pathlib.Path) -> Mapping[str, Any]:
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ConfigError(f"{path} {what}; expected the --workdir of a training run.")
    recorded = read_config(path)
    if recorded is None:
        above = next((folder for folder in path.resolve().parents[:3] if (folder / CONFIG_NAME).is_file()), None)
        hint = f"Did you mean {above}?" if above else "Give the folder that train.py was given as --workdir."
        raise ConfigError(f"{path} holds no run: there is no {CONFIG_NAME} in it. {hint}")
    return recorded


def _num_steps(config: Any, inputs: Mapping[str, Any]) -> int | None:
    if not config.num_epochs:
        return config.num_steps
    try:
        return in_steps(config, int(inputs["examples"][config.data.train_split]["sizes"][0])).num_steps
    except (KeyError, TypeError, IndexError, ValueError):
        return None


def _object(path: pathlib.Path) -> Mapping[str, Any]:
    """Returns a JSON object that the report can do without; empty where there is none, or it is damaged."""
    try:
        return read_object(path) or {}
    except ConfigError:
        return {}


def _evaluations(folder: pathlib.Path) -> list[Evaluation]:
    found = []
    for path in folder.glob(f"*/{_METRICS}"):
        try:
            metrics, written = read_json(path), path.stat().st_mtime
        except (OSError, ValueError):
            continue
        if isinstance(metrics, dict):
            found.append((written, Evaluation(path.parent, metrics)))
    return [one for _, one in sorted(found, key=lambda pair: (-pair[0], pair[1].folder.name))]
