"""Plugins by entry point: list those installed; find, import and configure one.

Import `find`, `installed`, `resolve` from `plugins.registry`. Knows names and distributions only, not what plugins do.
"""
