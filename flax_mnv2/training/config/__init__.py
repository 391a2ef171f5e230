"""Every setting of a run: defaults, checks, durations."""
