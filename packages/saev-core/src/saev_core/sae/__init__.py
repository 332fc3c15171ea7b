"""The SAE variants of the core; others come as plugins."""
