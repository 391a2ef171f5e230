"""The config to evaluate with: the one that the run recorded, changed by the flags of this command."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from flax_mnv2.errors import ConfigError
from flax_mnv2.files import shown
from flax_mnv2.tasks.rules import flatten
from flax_mnv2.training.config.defaults import default_config, fields_of_other_tasks
from flax_mnv2.training.workdir import CONFIG_NAME, read_config


def config_for_evaluation(
    config: ml_collections.ConfigDict | None,
    overrides: Mapping[str, Any],
    *,
    workdir: str = "",
    checkpoint: str = "",
) -> ml_collections.ConfigDict:
    """Chooses the config of an evaluation.

    A run knows its data, so nobody has to repeat the flags it was trained with; a recipe given beside it is
    needed only where nothing was recorded.

    Args:
      config: from ``--config``, or None.
      overrides: fields set on the command line, by dotted name.
      workdir: of a run, or empty.
      checkpoint: ``WORKDIR/checkpoints/step_N``, or empty.

    Raises:
      ConfigError: there is neither a recorded config nor a given one.
    """
    folder = pathlib.Path(workdir).expanduser() if workdir else None
    if checkpoint:
        folder = pathlib.Path(checkpoint).expanduser().parent.parent
    recorded = read_config(folder) if folder else None
    if recorded is None:
        if config is not None:
            return config
        where = f"{folder} holds no {CONFIG_NAME}, and" if folder else "There is no --workdir, and"
        raise ConfigError(f"{where} no --config was given; give the recipe with --config FILE.")
    try:
        merged = default_config(recorded["task"])
        foreign = fields_of_other_tasks(merged.task)  # which an older version's run recorded too
        merged.update_from_flattened_dict({k: v for k, v in flatten(recorded).items() if k not in foreign})
        merged.update_from_flattened_dict(dict(overrides))
    except (KeyError, AttributeError, TypeError, ValueError, RecursionError) as error:
        reason = shown(str(error.args[0] if error.args else error))[1:-1]
        raise ConfigError(f"{folder / CONFIG_NAME} does not fit this version of flax_mnv2: {reason}.") from None
    return merged
