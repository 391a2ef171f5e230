"""Readers of TensorFlow's files, without TensorFlow: checkpoints, frozen graphs, Keras' HDF5, TFLite."""
