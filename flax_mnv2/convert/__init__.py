"""Weights of other libraries: one file per ecosystem, each usable in both directions."""
