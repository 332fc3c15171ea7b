"""Task `semprobe`: features as detectors of concepts that a person has curated pictures of."""

from saev_tasks.semprobe.task import NegativesConfig, ScoreConfig, SemProbe, SheetsConfig

__all__ = ["NegativesConfig", "ScoreConfig", "SemProbe", "SheetsConfig"]
