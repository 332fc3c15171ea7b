"""Linear probes on patches, and what changes their mind."""
