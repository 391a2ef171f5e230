"""What stands in the place of a linen model in an evaluation: a file, or a quantised model as its file computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.export.graph.computing import compute
from flax_mnv2.export.graph.network import make_graph
from flax_mnv2.export.network import ExportedNetwork, as_output
from flax_mnv2.export.settings import ExportSettings
from flax_mnv2.models.fold import fold_batch_norm
from flax_mnv2.weights.models import task_of_class


class ExportedModule:
    """An exported file in the place of a model, whose runtime the compiled program calls on the host.

    Attributes:
      config: of the model that the file was made of.
    """

    def __init__(self, network: ExportedNetwork):
        """Takes an opened file."""
        self._network, self.config = network, network.config

    @property
    def spec(self) -> DetectionSpec:
        """Of a detector: maps, anchors and the rest."""
        return self._network.spec

    def apply(self, variables: Mapping[str, Any], pixel_values: jax.Array, **options: Any) -> Any:
        """Normalised pixels (N, H, W, C) → the output of the model of this task; variables and options are ignored."""
        sample = self._network(np.zeros(pixel_values.shape, np.float32))
        shapes = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype), sample)
        return jax.pure_callback(self._network, shapes, pixel_values)


class DeployedModule:
    """A quantised model in the arithmetic of its exported file, in integers, computed by JAX.

    Attributes:
      config: of the model.
    """

    def __init__(self, model: nn.Module, variables: Mapping[str, Any]):
        """Takes a model and its variables; errors as for ``export``, where it cannot be written in integers."""
        variables = jax.tree.map(np.asarray, dict(variables))
        if not model.batch_norm_folded:
            model, variables = fold_batch_norm(model, variables)
        self._model, self._variables, self.config = model, variables, model.config

    @property
    def spec(self) -> DetectionSpec:
        """Of a detector: maps, anchors and the rest."""
        return self.config.detection or DetectionSpec()

    def apply(self, variables: Mapping[str, Any], pixel_values: jax.Array, **options: Any) -> Any:
        """Normalised pixels (N, H, W, C) → the model's output; its own variables hold, and options are ignored."""
        batch, height, width, _ = pixel_values.shape
        graph = make_graph(self._model, self._variables, ExportSettings((height, width), batch))
        return as_output(task_of_class(type(self._model)), compute(graph, pixel_values), self.spec)
