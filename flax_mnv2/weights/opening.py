"""The one door to weights of every kind: a hub id, a folder, a file or a state dict → ``Source``."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from flax_mnv2.checkpoint.folder import FOLDER_NAME, CheckpointFolder, step_of
from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import CheckpointError, ConfigError
from flax_mnv2.files import read_json
from flax_mnv2.hub import expand_user, resolve_folder
from flax_mnv2.image_processing.processor import PROCESSOR_NAME
from flax_mnv2.weights.formats import FORMATS, is_file_name
from flax_mnv2.weights.formats.base import CONFIG_NAME, Format, Found
from flax_mnv2.weights.source import Source
from flax_mnv2.weights.tensor_files import (
    FILE_SUFFIXES,
    READ_SUFFIXES,
    WEIGHT_NAMES,
    TensorFile,
    read_tensor_file,
    to_arrays,
)
from flax_mnv2.weights.tensorflow.bundle import find_index
from flax_mnv2.weights.tensorflow.files import TENSORFLOW_SUFFIXES
from flax_mnv2.weights.tensors import is_rounded
from flax_mnv2.weights.torch_files import check_choice

_HUB_FILES = (CONFIG_NAME, PROCESSOR_NAME, *dict.fromkeys(name for form in FORMATS.values() for name in form.hub_files))
_HUB_PICKLES = (*WEIGHT_NAMES[2:], "pytorch_model-*.bin")
_SHOWN = 5


def open_weights(
    source: str | pathlib.Path | Mapping[str, Any] | Source,
    *,
    revision: str | None = None,
    cache_dir: str | pathlib.Path | None = None,
    config: MobileNetV2Config | None = None,
    weights: str = "auto",
) -> Source:
    """Opens weights of any format, which it recognises by files, config and names, or raises a UserError.

    They are a folder of Hugging Face, timm or the flax format; a checkpoint of a run, ``WORKDIR/checkpoints/step_N``; a
    ``.safetensors`` or PyTorch file, also a training checkpoint, of transformers (with its ``config.json`` beside it),
    torchvision, timm, VainF, smp, mmseg or mmdet; a checkpoint of TF-slim, TF DeepLab or TF Object Detection (folder,
    prefix, or the zoo's archive) or their frozen graph; a Keras or a TFLite file; a hub id such as
    ``google/mobilenet_v2_1.0_224``; a state dict of another library's; or a source that is open already, which is given
    back.

    ``revision``, ``cache_dir`` and ``weights`` are as for ``from_pretrained``. Of transformers' weights ``config`` goes
    before the ``config.json`` that lies there.
    """
    check_choice(weights)
    if isinstance(source, Source):
        if weights != "auto":
            raise ConfigError(f"{source.where} is open already; pass weights={weights!r} to open_weights.")
        return source
    if isinstance(source, Mapping):
        return open_state_dict(source)
    path = expand_user(source)
    if not (path / CONFIG_NAME).exists():  # else a folder of another library, whatever lies in it too
        path = find_index(path) or path  # of a TensorFlow checkpoint, of which a path names a part or the folder
    is_file = os.path.isfile(path) or ((is_file_name(path) or path.suffix in READ_SUFFIXES) and not os.path.isdir(path))
    if not is_file:
        step = step_of(path.name)
        if step is not None and not path.exists():  # earlier versions called a run's checkpoint 4, not step_4
            other = CheckpointFolder(path.parent).path_of(step)
            source = other if other.is_dir() else source
        path = _fetch(source, revision=revision, cache_dir=cache_dir)
    elif not os.path.exists(path):
        raise CheckpointError(f"No file or folder {path}.")
    folder, tensors = (path.parent if is_file else path), None
    if is_file and (path.suffix in (*FILE_SUFFIXES, *TENSORFLOW_SUFFIXES) or not is_file_name(path)):
        tensors = read_tensor_file(path, weights)  # an error where no format has the suffix
    return _open(Found(path, folder, _peek(folder / CONFIG_NAME), tensors, config, weights))


def open_state_dict(
    state: Mapping[str, Any], config: MobileNetV2Config | None = None, *, called: str = "the state dict"
) -> Source:
    """Opens a state dict in memory, which messages call so; arguments and errors as for ``from_state_dict``."""
    found = Found(pathlib.Path(called), None, {}, TensorFile(to_arrays(state)), config)
    return _open(found)


def _open(found: Found) -> Source:
    source = _recognise(found).open(found)
    if not is_rounded(source.state):
        return source
    return dataclasses.replace(source, notes=(*source.notes, "float64 became float32, rounded"))


def _fetch(source: str | pathlib.Path, **options: Any) -> pathlib.Path:
    """Returns the local folder; from the hub, pickled weights are fetched only where there are no others."""
    folder = resolve_folder(source, files=_HUB_FILES, **options)
    if any((folder / name).exists() for form in FORMATS.values() for name in form.weight_names):
        return folder
    return resolve_folder(source, files=(*_HUB_FILES, *_HUB_PICKLES), **options)


def _recognise(found: Found) -> Format:
    """Returns the format that says yes; a CheckpointError where none does."""
    by_suffix = found.is_file and found.tensors is None
    forms = [form for form in FORMATS.values() if not by_suffix or found.where.suffix in form.suffixes]
    form = next((form for form in forms if form.recognises(found)), None)
    if form is not None:
        return form
    if found.tensors is None:
        for folder in map(CheckpointFolder, (found.where, found.where / FOLDER_NAME)):
            if steps := folder.steps():
                raise CheckpointError(
                    f"{found.where} holds the checkpoints of a training run; name one of them, such as "
                    f"{folder.path_of(steps[-1])}."
                )
        return FORMATS["hf"]  # whose error says what such a folder lacks
    names = [f"{name} {value.shape}" for name, value in sorted(found.tensors.state.items())]
    examples = "\n".join(f"    {form.name + ':':<12} {form.example}" for form in FORMATS.values() if form.example)
    raise CheckpointError(
        f"The tensors of {found.where} are those of no format known here.\n"
        f"  found {len(names)}: {', '.join(names[:_SHOWN]) or 'none'}{', …' if len(names) > _SHOWN else ''}\n"
        f"  expected names such as\n{examples}"
    )


def _peek(path: pathlib.Path) -> dict[str, Any]:
    """Returns a JSON object, or nothing where there is none; who needs a valid one reads it again and says why not."""
    try:
        values = read_json(path)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
