"""Images of any kind to pixel values, and logits back to label maps."""
