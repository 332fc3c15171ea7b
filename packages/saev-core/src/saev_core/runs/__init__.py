"""A run on disk: its folder, the grid of a sweep, what is up to date, observers, and the metrics log.

Import `Run`, `expand`, `hookimpl`. It knows names and settings, not the artifacts' contents, and imports no torch.
"""
