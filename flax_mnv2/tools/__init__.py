"""Commands that look at a run without training it."""
