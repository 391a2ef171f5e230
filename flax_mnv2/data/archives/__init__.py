"""Folders, tars and zips of images behind one read-only view."""
