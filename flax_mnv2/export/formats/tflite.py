"""Writes TFLite files, through LiteRT's schema: channels last as here, so nothing is transposed."""

from __future__ import annotations

import json
import pathlib
import zipfile

from flax_mnv2.export.formats.tflite_operators import write_operation
from flax_mnv2.export.formats.tflite_writer import Writer
from flax_mnv2.export.graph import operations as ops
from flax_mnv2.export.metadata import Metadata
from flax_mnv2.export.packages import needs_package

LABELS_NAME = "labels.txt"  # in the zip behind the graph, where TFLite's own metadata keep labels


def write_tflite(graph: ops.Graph, path: pathlib.Path, metadata: Metadata) -> None:
    """Writes a graph to a file.

    Raises:
      UserError: the package ai-edge-litert is missing.
      ConfigError: something that TFLite cannot say.
    """
    with needs_package("tflite"):
        import flatbuffers
        from ai_edge_litert import schema_py_generated
    writer = Writer(graph, schema_py_generated)
    for operation in graph.operations:
        write_operation(operation, writer)
    content = json.dumps(metadata.to_dict(), ensure_ascii=False).encode()
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(writer.model(content).Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())
    labels = metadata.to_dict()["labels"]
    if labels:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(LABELS_NAME, "\n".join(labels))
