"""Data sets and input pipelines: TFDS builders, NumPy augmentations, grain iterators. Nothing here needs TensorFlow.

:mod:`flax_mnv2.data.datasets` opens a data set, :mod:`flax_mnv2.data.loader` turns its splits into batches.
"""
