"""Linear probes on whole pictures, and what changes their mind."""
