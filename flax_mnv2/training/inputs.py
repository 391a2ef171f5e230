"""What a run read, its examples and first weights: recorded in its workdir, compared when it goes on.

Paths say where things lay on one machine. A run that has moved, or whose data has, is the same run; another archive or
other weights under the old path are not.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from flax_mnv2.data.datasets.records import Dataset
from flax_mnv2.data.decode import AS_STORED, UPRIGHT
from flax_mnv2.errors import ConfigError
from flax_mnv2.files import write_text
from flax_mnv2.hub import expand_user
from flax_mnv2.tasks.rules import flatten
from flax_mnv2.training.config.defaults import INPUTS
from flax_mnv2.training.workdir import has_begun, read_config, read_object, write_config, writing_in
from flax_mnv2.weights.opening import open_weights
from flax_mnv2.weights.source import Source

INPUTS_NAME = "inputs.json"
_EXAMPLES, _LABELS, _DECODING, _WEIGHTS = "examples", "labels", "decoding", "weights"


def record_inputs(folder: pathlib.Path, config: ml_collections.ConfigDict, dataset: Dataset) -> None:
    """Records config and inputs of a run that begins; of one that goes on, first checks that it reads the same.

    A ConfigError names each of ``defaults.INPUTS`` that has other content than the run began with. Process 0 does it.
    """
    if jax.process_index() != 0:
        return
    stored, path = flatten(read_config(folder) or {}), folder / INPUTS_NAME
    goes_on = has_begun(folder)
    before = read_object(path) if goes_on else None
    now = _inputs(config, dataset, before, stored)
    if goes_on:
        _check_same(folder, flatten(config), stored, now, before)
    with writing_in(folder):
        write_config(folder, config)
        write_text(path, json.dumps(now, indent=2) + "\n")


def _inputs(
    config: ml_collections.ConfigDict, dataset: Dataset, before: Mapping[str, Any] | None, stored: Mapping[str, Any]
) -> dict[str, Any]:
    weights, same_name = None, config.init_from == stored.get("init_from")
    if before is not None and same_name and not os.path.exists(expand_user(config.init_from)):
        weights = before.get(_WEIGHTS)  # they are gone, or on the hub, and the run has them in its checkpoints
    elif config.init_from:
        weights = digest_of_weights(open_weights(config.init_from))
    splits = dict.fromkeys((config.data.train_split, config.data.eval_split))
    return {
        _EXAMPLES: {split: dataset.fingerprint(split) for split in splits},
        _LABELS: list(dataset.labels),
        _DECODING: AS_STORED if dataset.as_stored else UPRIGHT,
        _WEIGHTS: weights,
    }


def digest_of_weights(source: Source) -> str:
    """Returns what changes with names, shapes, types and values of tensors, not with the file that they lie in."""
    digest = hashlib.sha256()
    for name, value in sorted(source.state.items()):
        value = np.ascontiguousarray(value)
        digest.update(f"{name} {value.dtype} {value.shape} ".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _check_same(
    folder: pathlib.Path,
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    now: Mapping[str, Any],
    before: Mapping[str, Any] | None,
) -> None:
    if before is None:  # an older version's run, of which the paths are known
        different = {name: "another" for name in INPUTS if not _same_path(ours.get(name), theirs.get(name))}
    else:
        different = _differences(now, before)
    lines = [
        f"\n  {name}: {what}; {theirs.get(name)!r} there, {ours.get(name)!r} now" for name, what in different.items()
    ]
    if lines:
        raise ConfigError(
            f"{folder} holds a run that began with other inputs:{''.join(lines)}\nContinue it with its own, or choose "
            "another --workdir for this one."
        )


def _differences(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, str]:
    """Returns what differs, in words, by the field of the config that it comes from."""
    found: dict[str, str] = {}
    others = before.get(_EXAMPLES, {})
    changed = [split for split, found in now[_EXAMPLES].items() if not _same_examples(found, others.get(split, {}))]
    if changed:
        found["data.archive"] = f"other examples in {', '.join(changed)}"
    if now[_LABELS] != before.get(_LABELS):
        found["data.labels"] = "other class names"
    if now[_DECODING] != before.get(_DECODING):
        found["data.dataset"] = f"images were decoded {before.get(_DECODING)}, and are {now[_DECODING]}"
    if now[_WEIGHTS] != before.get(_WEIGHTS):
        found["init_from"] = "other weights"
    return found


def _same_examples(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    by = "digest" if ours["digest"] and theirs.get("digest") else "sizes"
    return ours[by] == theirs.get(by)


def _same_path(ours: Any, theirs: Any) -> bool:
    return ours == theirs or (
        bool(ours and theirs) and os.path.realpath(expand_user(ours)) == os.path.realpath(expand_user(theirs))
    )
