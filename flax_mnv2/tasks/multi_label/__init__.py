"""Multi-label classification: an image may have any number of the classes."""
