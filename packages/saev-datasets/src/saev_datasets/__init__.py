"""Image data sets as plugins of saev-core, one per file."""
