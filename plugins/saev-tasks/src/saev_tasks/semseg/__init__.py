"""Semantic segmentation: probes on patches, and control of their masks by features."""
