"""Task `probe1d`: the best single-feature probe of every class, and probes of a few features."""

from saev_tasks.probe1d.task import FitConfig, Probe1D

__all__ = ["FitConfig", "Probe1D"]
