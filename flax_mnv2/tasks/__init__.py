"""What differs between jobs: model, loss, metrics, examples. A new job is a new file here."""
