"""Data sets and input pipelines: TFDS builders, NumPy augmentations, grain iterators.

Nothing here needs TensorFlow. Use :func:`flax_mnv2.data.load.load_segmentation` or ``load_classification`` to get a
data set, and :mod:`flax_mnv2.data.pipeline` or :mod:`flax_mnv2.data.classification_pipeline` to turn one of its
splits into batches.
"""
