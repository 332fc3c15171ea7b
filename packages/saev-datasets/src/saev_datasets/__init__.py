"""Image data sets, each a plugin of saev-core, one a file."""
