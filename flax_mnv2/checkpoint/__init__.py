"""Checkpoints on Orbax, with a checksum of every array; below weights and training, used by both."""
