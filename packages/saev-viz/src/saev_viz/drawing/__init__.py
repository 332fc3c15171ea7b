"""Charts, SVG and heat maps. Knows nothing of runs."""
