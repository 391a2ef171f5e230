"""``config.data`` to a prepared data set with random access: one module per data set, and their registry."""
