"""Models of other libraries in memory ↔ a model of this one and its variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import CheckpointError, ConfigError
from flax_mnv2.weights.formats import FORMATS
from flax_mnv2.weights.opening import open_state_dict
from flax_mnv2.weights.pretrained import Variables, checkpoint_of, from_pretrained


def from_state_dict(
    state: Mapping[str, Any],
    *,
    config: MobileNetV2Config | None = None,
    task: str | None = None,
    dtype: Any = jnp.float32,
    **config_overrides: Any,
) -> tuple[nn.Module, Variables]:
    """Converts the state dict of a model of another library, which it recognises.

    Libraries are transformers, torchvision, timm; of DeepLab VainF, smp and mmseg; of detectors mmdet and, by the names
    of its variables, the TF Object Detection API; and, by its variables, TF DeepLab or Keras.

    Args:
      state: PyTorch tensors or NumPy arrays by name, as ``module.state_dict()`` gives them.
      config: of a model of transformers, ``MobileNetV2Config.from_dict(module.config.to_dict())``; the tensors of
        the others' say it themselves, a detector's but for anchors that are not the published ones.
      task: as for ``from_pretrained``; None takes the config's, else that of the head.
      dtype: as for ``from_pretrained``.
      **config_overrides: as for ``from_pretrained``; ``global_pool`` of timm's modules, which their tensors do not say.

    Returns:
      The model and its variables, as ``from_pretrained``.

    Raises:
      CheckpointError: tensors of no known library, or missing, left over or of another shape; each named.
      ConfigError: a config that is needed is missing, or the reverse.
    """
    source = open_state_dict(state, config)
    return from_pretrained(source, task=task or source.task or source.task_of_names(), dtype=dtype, **config_overrides)


def from_keras(model: Any, **options: Any) -> tuple[nn.Module, Variables]:
    """Converts a ``keras.applications.MobileNetV2``, or a Keras model that has one as a part, in memory.

    Args:
      model: the Keras model, of any backend. Of layers behind the network one dense layer is taken, as classifier.
      **options: ``task``, ``dtype`` and fields of the config, as for ``from_pretrained``.

    Returns:
      The model and its variables, as ``from_pretrained``.

    Raises:
      CheckpointError: the layers are not those of a MobileNetV2; each that is missing or left over is named.
    """
    state = {}
    for variable in _variables(model):
        name = getattr(variable, "path", variable.name).partition(":")[0]
        if name in state:
            raise CheckpointError(
                f"Two variables of the Keras model are called {name}; give its layers their own names."
            )
        state[name] = np.asarray(variable)
    return from_pretrained(open_state_dict(state, called="the Keras model"), **options)


def _variables(model: Any) -> Iterator[Any]:
    """Yields the variables of the layers in their order; a model's own list has those that are not trained last."""
    layers = getattr(model, "layers", None)
    if not layers:
        yield from model.weights
        return
    for layer in layers:
        yield from _variables(layer)


def to_state_dict(model: nn.Module, variables: Mapping[str, Any], library: str) -> dict[str, np.ndarray]:
    """Returns the state dict that a module of ``library`` loads: ``"hf"``, ``"torchvision"`` or ``"timm"``.

    Of a segmentation model it is ``"vainf"``, ``"smp"`` or ``"mmseg"`` too.
    Of a detector it is ``"tf_detection"`` (the TF Object Detection API's variables) or ``"mmdet"``.
    For ``"keras"`` it is the variables of ``keras.applications.MobileNetV2`` by their path.

    ``variables`` are the model's ``params`` and ``batch_stats``; counters of batch norm are 0.

    Raises:
      CheckpointError: ``variables`` are not the model's.
      ConfigError: the library cannot represent the model; the message says in what.
    """
    *names, last = (name for name, form in FORMATS.items() if form.example and form.is_written)
    if library not in (*names, last):
        raise ConfigError(f"The library must be {', '.join(names)} or {last}; found {library!r}.")
    checkpoint = checkpoint_of(model, variables).without_ranges()
    FORMATS[library].check_target(checkpoint)
    return FORMATS[library].state_dict(checkpoint)
