"""Sparse autoencoders on vision transformers: record, train, evaluate, index.

Public names are resolved on first use (PEP 562), so importing this package imports no torch. The verbs live
in rooms of their own name and are imported from there: `from saev_core.training.train import train`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saev_core.activations.sources.base import ActivationSource as ActivationSource
    from saev_core.activations.sources.live import LiveSource as LiveSource
    from saev_core.activations.sources.stored import StoreSource as StoreSource
    from saev_core.activations.store.meta import StoreMeta as StoreMeta
    from saev_core.activations.store.store import ActivationStore as ActivationStore
    from saev_core.config.run import RunConfig as RunConfig
    from saev_core.data.dataset import DatasetConfig as DatasetConfig
    from saev_core.data.dataset import ImageDataset as ImageDataset
    from saev_core.data.decode import open_rgb as open_rgb
    from saev_core.data.download import Archive as Archive
    from saev_core.errors import SaevError as SaevError
    from saev_core.features.index import FeatureIndex as FeatureIndex
    from saev_core.interventions.edit import Edit as Edit
    from saev_core.interventions.steering import steering as steering
    from saev_core.models.base import ModelConfig as ModelConfig
    from saev_core.models.base import VisionModel as VisionModel
    from saev_core.runs.hooks import hookimpl as hookimpl
    from saev_core.runs.run import Run as Run
    from saev_core.runs.viewer import RunViewer as RunViewer
    from saev_core.sae.base import SAE as SAE
    from saev_core.sae.checkpoint import Checkpoint as Checkpoint
    from saev_core.sae.codes import Codes as Codes
    from saev_core.sae.config import SAEConfig as SAEConfig
    from saev_core.sae.norm import Norm as Norm
    from saev_core.sae.step import Progress as Progress
    from saev_core.sae.step import Step as Step
    from saev_core.tasks.context import TaskContext as TaskContext
    from saev_core.tasks.probe import Probe as Probe
    from saev_core.tasks.task import Task as Task
    from saev_core.tasks.task import verb as verb
    from saev_core.tasks.viewer_tab import TabHost as TabHost
    from saev_core.tasks.viewer_tab import ViewerTab as ViewerTab
    from saev_core.types import Box as Box
    from saev_core.types import Example as Example
    from saev_core.types import Grid as Grid
    from saev_core.types import Site as Site

__version__ = "0.1.0"

_HOME = {
    "ActivationSource": "saev_core.activations.sources.base",
    "ActivationStore": "saev_core.activations.store.store",
    "Archive": "saev_core.data.download",
    "Box": "saev_core.types",
    "Checkpoint": "saev_core.sae.checkpoint",
    "Codes": "saev_core.sae.codes",
    "DatasetConfig": "saev_core.data.dataset",
    "Edit": "saev_core.interventions.edit",
    "Example": "saev_core.types",
    "FeatureIndex": "saev_core.features.index",
    "Grid": "saev_core.types",
    "ImageDataset": "saev_core.data.dataset",
    "LiveSource": "saev_core.activations.sources.live",
    "ModelConfig": "saev_core.models.base",
    "Norm": "saev_core.sae.norm",
    "Probe": "saev_core.tasks.probe",
    "Progress": "saev_core.sae.step",
    "Run": "saev_core.runs.run",
    "RunConfig": "saev_core.config.run",
    "RunViewer": "saev_core.runs.viewer",
    "SAE": "saev_core.sae.base",
    "SAEConfig": "saev_core.sae.config",
    "SaevError": "saev_core.errors",
    "Site": "saev_core.types",
    "Step": "saev_core.sae.step",
    "StoreMeta": "saev_core.activations.store.meta",
    "StoreSource": "saev_core.activations.sources.stored",
    "TabHost": "saev_core.tasks.viewer_tab",
    "Task": "saev_core.tasks.task",
    "TaskContext": "saev_core.tasks.context",
    "ViewerTab": "saev_core.tasks.viewer_tab",
    "VisionModel": "saev_core.models.base",
    "hookimpl": "saev_core.runs.hooks",
    "open_rgb": "saev_core.data.decode",
    "steering": "saev_core.interventions.steering",
    "verb": "saev_core.tasks.task",
}
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
