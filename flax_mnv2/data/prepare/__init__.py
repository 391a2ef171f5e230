"""Data sets built ahead of training: ``python -m flax_mnv2.data.prepare``."""
