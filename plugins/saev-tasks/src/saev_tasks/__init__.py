"""Tasks: probes, segmentation, control experiments, single-feature probes, fidelity."""
