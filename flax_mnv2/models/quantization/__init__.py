"""Quantisation-aware training: which numbers of a network are rounded, and the ranges that they are rounded in."""
