"""Task `semprobe`: features as detectors of concepts that a person has curated pictures of."""

from saev_tasks.semprobe.options import NegativesConfig, ScoreConfig, SheetsConfig
from saev_tasks.semprobe.task import SemProbe

__all__ = ["NegativesConfig", "ScoreConfig", "SemProbe", "SheetsConfig"]
