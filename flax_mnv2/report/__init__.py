"""One HTML file on a run: its curves, config, metrics, pictures, data and environment; nothing in it is fetched."""
