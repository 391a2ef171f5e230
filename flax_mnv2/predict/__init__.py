"""Photos to classes or label maps: ``python -m flax_mnv2.predict``."""
