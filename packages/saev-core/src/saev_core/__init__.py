"""Sparse autoencoders on vision transformers: record, train, evaluate, index.

Public names are resolved on first use (PEP 562), so importing this package imports no torch. The verbs live
in rooms of their own name and are imported from there: `from saev_core.train import train`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saev_core.checkpoint import Checkpoint as Checkpoint
    from saev_core.codes import Codes as Codes
    from saev_core.config import DatasetConfig as DatasetConfig
    from saev_core.config import ModelConfig as ModelConfig
    from saev_core.config import RunConfig as RunConfig
    from saev_core.config import SAEConfig as SAEConfig
    from saev_core.dataset import ImageDataset as ImageDataset
    from saev_core.download import Archive as Archive
    from saev_core.errors import SaevError as SaevError
    from saev_core.features import FeatureIndex as FeatureIndex
    from saev_core.hooks import hookimpl as hookimpl
    from saev_core.images import open_rgb as open_rgb
    from saev_core.live import LiveSource as LiveSource
    from saev_core.model import VisionModel as VisionModel
    from saev_core.norm import Norm as Norm
    from saev_core.probe import Probe as Probe
    from saev_core.run import Run as Run
    from saev_core.sae import SAE as SAE
    from saev_core.sae import Progress as Progress
    from saev_core.sae import Step as Step
    from saev_core.source import ActivationSource as ActivationSource
    from saev_core.source import StoreSource as StoreSource
    from saev_core.steer import Edit as Edit
    from saev_core.steer import steering as steering
    from saev_core.store import ActivationStore as ActivationStore
    from saev_core.store import StoreMeta as StoreMeta
    from saev_core.task import Task as Task
    from saev_core.task import TaskContext as TaskContext
    from saev_core.task import verb as verb
    from saev_core.types import Box as Box
    from saev_core.types import Example as Example
    from saev_core.types import Grid as Grid
    from saev_core.types import ImageBatch as ImageBatch
    from saev_core.types import Site as Site

__version__ = "0.1.0"

_HOME = {
    "ActivationSource": "source",
    "ActivationStore": "store",
    "Archive": "download",
    "Box": "types",
    "Checkpoint": "checkpoint",
    "Codes": "codes",
    "DatasetConfig": "config",
    "Edit": "steer",
    "Example": "types",
    "FeatureIndex": "features",
    "Grid": "types",
    "ImageBatch": "types",
    "ImageDataset": "dataset",
    "LiveSource": "live",
    "ModelConfig": "config",
    "Norm": "norm",
    "Probe": "probe",
    "Progress": "sae",
    "Run": "run",
    "RunConfig": "config",
    "SAE": "sae",
    "SAEConfig": "config",
    "SaevError": "errors",
    "Site": "types",
    "Step": "sae",
    "StoreMeta": "store",
    "StoreSource": "source",
    "Task": "task",
    "TaskContext": "task",
    "VisionModel": "model",
    "hookimpl": "hooks",
    "open_rgb": "images",
    "steering": "steer",
    "verb": "task",
}
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
