"""The version of the package, kept apart so that packaging reads it without importing JAX."""

__version__ = "1.0.0"
