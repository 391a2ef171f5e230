"""``config.data`` to a prepared data set with random access: one module per data set, and their registry."""

from importlib import import_module

from flax_mnv2.errors import needs_extra

with needs_extra("train", __name__):
    import_module("cv2")
