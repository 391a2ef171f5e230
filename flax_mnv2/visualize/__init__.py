"""Pictures for people: of predictions, of training images, of metrics."""
