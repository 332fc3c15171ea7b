"""A run as pages show it: its SAEs, images, features, names and notes. Knows no HTML."""
