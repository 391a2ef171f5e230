"""Every setting of a run: defaults and checks."""

from importlib import import_module

from flax_mnv2.errors import needs_extra

with needs_extra("train", __name__):
    import_module("ml_collections")
