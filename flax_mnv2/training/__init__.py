"""Optimizers, steps, devices, checkpoints, and the loop that joins them."""
