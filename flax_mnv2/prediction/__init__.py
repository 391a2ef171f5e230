"""From image files to predictions, behind ``python -m flax_mnv2.predict``."""
