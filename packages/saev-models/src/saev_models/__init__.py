"""Vision models, each a plugin of saev-core, one family a file."""
