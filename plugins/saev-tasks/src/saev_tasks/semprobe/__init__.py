"""Task `semprobe`: features as detectors of concepts given by curated images."""

from saev_tasks.semprobe.options import NegativesConfig, ScoreConfig, SheetsConfig
from saev_tasks.semprobe.task import SemProbe

__all__ = ["NegativesConfig", "ScoreConfig", "SemProbe", "SheetsConfig"]
