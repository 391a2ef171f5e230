"""Folders, tars and zips of images behind one read-only view: :func:`flax_mnv2.data.archives.archive.open_tree`."""
