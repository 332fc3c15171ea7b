"""Plugins by entry point: which are installed, and how one is found, imported and configured.

Import `find`, `installed`, `resolve` from `plugins.registry`. It knows names and distributions, not what a plugin does.
"""
