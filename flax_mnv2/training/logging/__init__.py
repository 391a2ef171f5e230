"""What a run tells: metrics, event files, progress."""
