"""Recognises, reads and writes the formats: ``hf``, ``torchvision``, ``timm`` and ``flax``."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from flax_mnv2.checkpoint import flax_folder
from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import CheckpointError, ConfigError
from flax_mnv2.hub import resolve_folder
from flax_mnv2.image_processing.processor import PROCESSOR_NAME, MobileNetV2ImageProcessor
from flax_mnv2.image_processing.settings import CHECKS
from flax_mnv2.untrusted import parse_json, read_json, read_text
from flax_mnv2.weights import files, hugging_face, timm, torchvision
from flax_mnv2.weights.checkpoint import Checkpoint, task_of, with_reference_extras
from flax_mnv2.weights.source import Source
from flax_mnv2.weights.tensors import FLAX_NAMING, StateDict, write_state

FORMATS = ("hf", "torchvision", "timm", "flax")
CONFIG_NAME = "config.json"
FILE_SUFFIXES = (files.SAFETENSORS_SUFFIX, *files.PICKLE_SUFFIXES)
_SHOWN = 5
_HUB_FILES = (
    CONFIG_NAME,
    PROCESSOR_NAME,
    *files.WEIGHT_NAMES[:2],
    "model-*.safetensors",
    f"{flax_folder.VARIABLES_NAME}/*",
    flax_folder.EXTRA_NAME,
)
_HUB_PICKLES = (*files.WEIGHT_NAMES[2:], "pytorch_model-*.bin")


def fetch(
    id_or_folder: str | pathlib.Path, *, revision: str | None = None, cache_dir: str | pathlib.Path | None = None
) -> pathlib.Path:
    """The local folder of a checkpoint; from the hub, pickled weights are fetched only where there are no others.

    Raises:
      CheckpointError: no such folder, and not a hub id that can be had.
    """
    folder = resolve_folder(id_or_folder, revision=revision, cache_dir=cache_dir, files=_HUB_FILES)
    if files.find_weights(folder) or flax_folder.recognises(folder):
        return folder
    return resolve_folder(id_or_folder, revision=revision, cache_dir=cache_dir, files=(*_HUB_FILES, *_HUB_PICKLES))


def open_source(path: pathlib.Path) -> Source:
    """Reads a folder or file of any format, which it recognises by its files, config and names.

    Raises:
      CheckpointError: nothing there, unreadable, or of no known format.
      ConfigError: the config beside it is not a MobileNetV2's.
    """
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_file(path)
    raise CheckpointError(f"No file or folder {path}.")


def _open_folder(folder: pathlib.Path) -> Source:
    if flax_folder.recognises(folder):
        return _open_flax(folder)
    steps = [path for name in ("checkpoints/*", "step_*", "[0-9]*") for path in folder.glob(f"{name}/variables")]
    if steps:
        raise CheckpointError(
            f"{folder} holds the checkpoints of a training run; name one of them, such as {max(steps).parent}."
        )
    values = _peek(folder / CONFIG_NAME)
    if "architecture" in values and "model_type" not in values:
        return _open_timm(folder, files.read_weights(folder), values)
    config = MobileNetV2Config.from_json_file(folder / CONFIG_NAME)
    return _open_hugging_face(folder, files.read_weights(folder), config)


def _open_file(path: pathlib.Path) -> Source:
    found = files.read_tensor_file(path)
    values = _peek(path.parent / CONFIG_NAME)
    if hugging_face.recognises(found.state):
        if not values:
            raise CheckpointError(
                f"{path} has transformers' tensor names, but no {CONFIG_NAME} lies beside it, and the tensors alone do "
                "not say padding, epsilon and output stride. Put the model's config.json into the same folder."
            )
        return _open_hugging_face(path, found, MobileNetV2Config.from_json_file(path.parent / CONFIG_NAME))
    return _open_pytorch(path, found, values if "architecture" in values else None)


def open_state(state: StateDict, config: MobileNetV2Config | None) -> Source:
    """A state dict in memory, recognised by its names.

    Args:
      state: every tensor by the name it has in its library.
      config: of a model of transformers, whose tensors do not say it; None for torchvision and timm, whose do.

    Raises:
      CheckpointError: of no known format, or the config is missing.
      ConfigError: a config where the tensors say it themselves.
    """
    where = pathlib.Path("the state dict")
    if hugging_face.recognises(state):
        if config is None:
            raise CheckpointError(
                "The state dict has transformers' tensor names, which do not say padding, epsilon and output stride. "
                "Pass config=MobileNetV2Config.from_dict(model.config.to_dict())."
            )
        state = hugging_face.with_prefix(state)
        return Source("hf", where, config, task=_stated_task(config), state=state, naming=hugging_face.NAMING)
    source = _open_pytorch(where, files.TensorFile(state), None)
    if config is not None:
        raise ConfigError(f"A {source.format} state dict says its network itself; pass no config.")
    return source


def _open_pytorch(path: pathlib.Path, found: files.TensorFile, timm_config: dict[str, Any] | None) -> Source:
    if torchvision.recognises(found.state):
        config = torchvision.config_of(found.state)
        naming = torchvision.naming(len(config.layer_plan.blocks))
        return Source(
            format="torchvision",
            where=path,
            config=config,
            task="classification",
            state=found.state,
            naming=naming,
            processor_text=torchvision.PROCESSOR_TEXT,
            notes=found.notes,
        )
    if timm.recognises(found.state):
        return _open_timm(path, found, timm_config)
    names = [f"{name} {value.shape}" for name, value in sorted(found.state.items())]
    raise CheckpointError(
        f"The tensors of {path} are those of no format known here.\n"
        f"  found {len(names)}: {', '.join(names[:_SHOWN]) or 'none'}{', …' if len(names) > _SHOWN else ''}\n"
        "  expected names such as\n"
        "    hf:          mobilenet_v2.conv_stem.first_conv.convolution.weight\n"
        "    torchvision: features.0.0.weight\n"
        "    timm:        conv_stem.weight, blocks.0.0.conv_dw.weight"
    )


def _open_hugging_face(path: pathlib.Path, found: files.TensorFile, config: MobileNetV2Config) -> Source:
    folder = path if path.is_dir() else path.parent
    return Source(
        format="hf",
        where=path,
        config=config,
        task=_stated_task(config),
        state=hugging_face.with_prefix(found.state),
        naming=hugging_face.NAMING,
        config_text=_read_text(folder / CONFIG_NAME),
        processor_text=_read_text(folder / PROCESSOR_NAME),
        notes=found.notes,
    )


def _open_timm(path: pathlib.Path, found: files.TensorFile, values: dict[str, Any] | None) -> Source:
    config = timm.config_of(found.state, values)
    is_rgb = config.num_channels == 3
    note = f"the image processor makes 3 channels, not {config.num_channels}: preprocessing stays behind"
    return Source(
        format="timm",
        where=path,
        config=config,
        task="classification",
        state=found.state,
        naming=timm.naming(config),
        processor_text=timm.make_processor(values).to_json_string() if is_rgb else None,
        notes=found.notes if is_rgb else (*found.notes, note),
    )


def _open_flax(folder: pathlib.Path) -> Source:
    about = flax_folder.read_about(folder)
    processor_text = _read_text(folder / PROCESSOR_NAME)
    if about is None:
        config = MobileNetV2Config.from_json_file(folder / CONFIG_NAME)
        task = _stated_task(config)
    else:
        config, task = MobileNetV2Config.from_dict(about["model"]), about["config"].get("task")
        processor_text = processor_text or flax_folder.run_processor(about).to_json_string()
    return Source(
        format="flax",
        where=folder,
        config=config,
        task=task,
        state=flax_folder.read_state(folder),
        naming=FLAX_NAMING,
        complete=flax_folder.has_extra(folder),
        config_text=_read_text(folder / CONFIG_NAME) if about is None else None,
        processor_text=processor_text,
    )


def write(checkpoint: Checkpoint, destination: pathlib.Path, to: str, *, keep_processor: bool) -> None:
    """Writes a checkpoint; ``config.json`` comes last, so that a folder that has one is whole.

    A folder that was new or empty is so again if writing it fails or is interrupted.

    Args:
      checkpoint: what to write.
      destination: a folder for ``hf`` and ``flax``, a file for ``torchvision``, either for ``timm``. What lies there
        under the names that are written is replaced, and other weights are removed.
      to: one of ``FORMATS``.
      keep_processor: whether a ``preprocessor_config.json`` stays where the checkpoint has none.

    Raises:
      ConfigError: the format cannot represent the model, or as for ``check_destination``.
      CheckpointError: the folder is one of a training run.
    """
    check_destination(destination, to)
    content = _CONTENTS[to](checkpoint)
    if destination.suffix in FILE_SUFFIXES:
        destination.parent.mkdir(parents=True, exist_ok=True)
        files.write_tensor_file(destination, content[-1])
        return
    with _undone_on_failure(destination):
        _write_folder(checkpoint, destination, to, content, keep_processor=keep_processor)


def to_state(checkpoint: Checkpoint, to: str) -> StateDict:
    """The state dict of ``hf``, ``torchvision`` or ``timm``.

    Raises:
      ConfigError: the library cannot represent the model.
    """
    if to not in ("hf", "torchvision", "timm"):
        raise ConfigError(f"The library must be hf, torchvision or timm; found {to!r}.")
    return _CONTENTS[to](checkpoint)[2]


def check_destination(destination: pathlib.Path, to: str) -> None:
    """Checks that a format can be written to a place, whether or not something lies there.

    Raises:
      ConfigError: the format needs a file where a folder is named, or the reverse, or a file is in the way.
      CheckpointError: the folder is one of a training run.
    """
    is_file = destination.suffix in FILE_SUFFIXES
    if (to in ("hf", "flax") and is_file) or (to == "torchvision" and not is_file):
        wanted = f"a file ending in {', '.join(FILE_SUFFIXES)}" if to == "torchvision" else "a folder"
        raise ConfigError(f"The format {to} is {wanted}; found {destination}.")
    if is_file and destination.is_dir():
        raise ConfigError(f"{destination} is a folder, where a file is to be written; name another place.")
    folder = destination.parent if is_file else destination
    for path in (folder, *folder.parents):
        if (path.exists() or path.is_symlink()) and not path.is_dir():
            what = "a file" if path.exists() else "a link to nothing"
            raise ConfigError(f"{path} is {what}, where a folder is needed; name another place.")
    if (destination / flax_folder.ABOUT_NAME).exists():
        raise CheckpointError(
            f"{destination} is a checkpoint of a training run and is not written to; name another folder."
        )


def is_empty(folder: pathlib.Path) -> bool:
    """Whether nothing lies in a folder, or only what a killed write of ours left there."""
    return all(map(_is_leftover, folder.iterdir()))


def left_behind(checkpoint: Checkpoint, destination: pathlib.Path, to: str) -> list[str]:
    """What a format cannot say of a checkpoint that it can otherwise represent, in words for the user."""
    if to not in ("torchvision", "timm"):
        return []
    config, notes = checkpoint.config, []
    if config.problem_type is not None:
        notes.append(f"{to} has no problem_type: {config.problem_type!r} stays behind")
    if destination.suffix in FILE_SUFFIXES:
        return [*notes, f"a {to} file holds tensors only: class names and preprocessing stay behind"]
    processor = _read_processor(checkpoint)
    if processor is None:
        usual = [] if timm.kept_config(config) else [f"no {PROCESSOR_NAME}: timm's usual preprocessing is written"]
        return notes + usual
    return notes + [
        f"timm cannot prepare images with {name}={getattr(processor, name)!r}: it resizes the shorter side, crops a "
        "square, scales by 1/255 and normalises"
        for name in timm.unsaid_settings(processor)
    ]


@contextlib.contextmanager
def _undone_on_failure(folder: pathlib.Path) -> Iterator[None]:
    """Makes a folder; what is written into one that was new or empty is removed if that fails."""
    was_there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    was_empty = is_empty(folder)
    try:
        yield
    except BaseException:
        if was_empty:
            for name in (CONFIG_NAME, PROCESSOR_NAME, *files.WEIGHT_NAMES, flax_folder.EXTRA_NAME):
                (folder / name).unlink(missing_ok=True)
            flax_folder.remove_variables(folder)
            _remove_leftovers(folder)
            if not was_there:
                with contextlib.suppress(OSError):  # somebody else's files may have come
                    folder.rmdir()
        raise


def _is_leftover(path: pathlib.Path) -> bool:
    return files.is_temporary(path) or flax_folder.is_temporary(path)


def _remove_leftovers(folder: pathlib.Path) -> None:
    for path in filter(_is_leftover, list(folder.iterdir())):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _write_folder(
    checkpoint: Checkpoint, destination: pathlib.Path, to: str, content: _Content, *, keep_processor: bool
) -> None:
    text, processor_text, state = content
    _remove_leftovers(destination)
    (destination / CONFIG_NAME).unlink(missing_ok=True)  # without one, nothing takes the folder for a whole model
    if to == "flax":
        flax_folder.write_tensors(destination, checkpoint.tensors, checkpoint.model_paths)
        stale = files.WEIGHT_NAMES
    else:
        files.write_tensor_file(destination / files.SAFETENSORS_NAME, state)
        flax_folder.remove_variables(destination)
        stale = (*files.WEIGHT_NAMES[1:], flax_folder.EXTRA_NAME)
    for name in stale:  # other weights there would be taken for this model's
        (destination / name).unlink(missing_ok=True)
    if processor_text is not None:
        files.write_text(destination / PROCESSOR_NAME, processor_text)
    elif not keep_processor:
        (destination / PROCESSOR_NAME).unlink(missing_ok=True)
    files.write_text(destination / CONFIG_NAME, text)


# What a format writes: config.json, preprocessor_config.json, tensors; all of it known before anything is touched.
_Content = tuple[str, str | None, StateDict]


def _hugging_face_content(checkpoint: Checkpoint) -> _Content:
    hugging_face.check_target(checkpoint.config)
    tensors = checkpoint.tensors
    if checkpoint.task == "segmentation" and not any("conv_1x1" in path for path in tensors):
        tensors = with_reference_extras(checkpoint.config, checkpoint.task, tensors)
    state = write_state(tensors, hugging_face.NAMING)
    if checkpoint.task == "backbone":  # a bare one has no prefix in the reference
        state = {key.removeprefix(hugging_face.PREFIX): value for key, value in state.items()}
    return checkpoint.to_config_text(), checkpoint.processor_text, state


def _torchvision_content(checkpoint: Checkpoint) -> _Content:
    torchvision.check_target(checkpoint.config, checkpoint.task)
    naming = torchvision.naming(len(checkpoint.config.layer_plan.blocks))
    return "", None, write_state(checkpoint.tensors, naming)


def _timm_content(checkpoint: Checkpoint) -> _Content:
    variant = timm.check_target(checkpoint.config, checkpoint.task)
    text = timm.folder_config_text(checkpoint.config, variant, _read_processor(checkpoint))
    return text, None, write_state(checkpoint.tensors, timm.naming(checkpoint.config))


def _read_processor(checkpoint: Checkpoint) -> MobileNetV2ImageProcessor | None:
    if checkpoint.processor_text is None:
        return None
    try:
        values = dict(parse_json(checkpoint.processor_text))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"The source's {PROCESSOR_NAME} is no JSON object: {error}.") from None
    try:
        return MobileNetV2ImageProcessor(**{name: values[name] for name in CHECKS if values.get(name) is not None})
    except ConfigError as error:
        raise ConfigError(f"The source's {PROCESSOR_NAME}: {error}") from None


def _flax_content(checkpoint: Checkpoint) -> _Content:
    return checkpoint.to_config_text(), checkpoint.processor_text, {}


_CONTENTS = {
    "hf": _hugging_face_content,
    "torchvision": _torchvision_content,
    "timm": _timm_content,
    "flax": _flax_content,
}


def _stated_task(config: MobileNetV2Config) -> str | None:
    try:
        return task_of(config)
    except ConfigError:
        return None


def _peek(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object, or nothing where there is none; who needs a valid one reads it again and says why not."""
    try:
        values = read_json(path)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _read_text(path: pathlib.Path) -> str | None:
    try:
        return read_text(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}.") from None
