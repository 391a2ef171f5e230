"""Every setting of a run: defaults, checks, durations, and what a run recorded."""
