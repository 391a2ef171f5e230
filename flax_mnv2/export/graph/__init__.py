"""A network as a list of plain operations on named edges, from which files are written."""
