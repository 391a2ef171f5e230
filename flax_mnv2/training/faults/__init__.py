"""What breaks a run: signals, NaN, storage that hangs."""
