"""What stands in the place of a linen model in an evaluation: a file, or a quantised model as its file computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.export.graph.computing import compute, weights_of
from flax_mnv2.export.graph.network import make_graph
from flax_mnv2.export.graph.operations import Graph
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
      variables: kernels and biases in integers, for ``apply``.
    """

    def __init__(self, model: nn.Module, variables: Mapping[str, Any]):
        """Takes a model and its variables; errors as for ``export``, where it cannot be written in integers."""
        variables = jax.tree.map(np.asarray, dict(variables))
        if not model.batch_norm_folded:
            model, variables = fold_batch_norm(model, variables)
        self._model, self._variables, self.config = model, variables, model.config
        self.variables = weights_of(self._graph(1, *np.broadcast_to(model.config.image_size, 2).tolist()))

    @property
    def spec(self) -> DetectionSpec:
        """Of a detector: maps, anchors and the rest."""
        return self.config.detection or DetectionSpec()

    def apply(self, variables: Mapping[str, Any], pixel_values: jax.Array, **options: Any) -> Any:
        """Normalised pixels (N, H, W, C) → the output of the model of this task; options are ignored."""
        outputs = compute(self._graph(*pixel_values.shape[:3]), variables, pixel_values)
        return as_output(task_of_class(type(self._model)) or "backbone", outputs, self.spec)

    def _graph(self, batch: int, height: int, width: int) -> Graph:
        return make_graph(self._model, self._variables, ExportSettings((height, width), batch))
