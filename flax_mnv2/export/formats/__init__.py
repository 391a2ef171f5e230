"""Writers: a graph to an ONNX or a TFLite file, a model to StableHLO."""
