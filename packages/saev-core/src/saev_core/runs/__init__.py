"""A run on disk: its folder, the grid of a sweep, up-to-date checks, observers, and the metrics log.

Import `Run`, `expand`, `hookimpl`. Depends on names and settings, not on the content of artifacts; imports no torch.
"""
