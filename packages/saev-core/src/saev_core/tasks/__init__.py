"""Tasks on a run: their context, probes and viewer tabs."""
