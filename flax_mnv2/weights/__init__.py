"""Weights of every library, both ways: ``from_pretrained``, ``save_pretrained``, ``python -m flax_mnv2.convert``."""
