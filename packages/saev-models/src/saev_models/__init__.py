"""Vision models as plugins of saev-core, one family per file."""
