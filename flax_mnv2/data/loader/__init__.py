"""Examples to batches, by grain: their order, their making ahead, and what a damaged one does."""
