"""Every setting of a run: defaults and checks."""
