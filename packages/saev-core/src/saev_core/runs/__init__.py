"""A run on disk: its folder, the grid of a sweep, up-to-date checks, observers, and the metrics log.

Import `Run`, `expand`, `hookimpl`. Handles names and settings, not the contents of artifacts, and imports no torch.
"""
