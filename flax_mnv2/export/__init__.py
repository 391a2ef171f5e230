"""Models as files for the runtimes that people ship: ONNX, TFLite and StableHLO. ``python -m flax_mnv2.export``."""

from flax_mnv2.export.exporting import export
from flax_mnv2.export.running import ExportedModel, is_exported

__all__ = ["ExportedModel", "export", "is_exported"]
