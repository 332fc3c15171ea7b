"""Task `probe1d`: the best single-feature probe for every class, and sparse probes."""

from saev_tasks.probe1d.task import FitConfig, Probe1D

__all__ = ["FitConfig", "Probe1D"]
