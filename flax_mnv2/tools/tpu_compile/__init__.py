"""A run's training step compiled for a TPU slice that is not there."""
