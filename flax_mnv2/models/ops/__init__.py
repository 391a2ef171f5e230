"""The hot operations, one form per platform."""
