"""Sparse autoencoders on vision transformers: record, train, evaluate, index, steer.

    from saev_core import load_dataset, load_model, record, train, evaluate, index_features

Public names are resolved on first use (PEP 562), so importing this package imports no torch. Packages are nouns (`training`),
functions are verbs (`train`); see docs/architecture.md for an overview.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saev_core.activations.recording.record import record as record
    from saev_core.activations.sources.array import ArraySource as ArraySource
    from saev_core.activations.sources.base import ActivationSource as ActivationSource
    from saev_core.activations.sources.image_vectors import ImageVectors as ImageVectors
    from saev_core.activations.sources.live import LiveSource as LiveSource
    from saev_core.activations.sources.stored import StoreSource as StoreSource
    from saev_core.activations.sources.stored_vectors import StoredVectors as StoredVectors
    from saev_core.activations.store.meta import StoreMeta as StoreMeta
    from saev_core.activations.store.store import ActivationStore as ActivationStore
    from saev_core.config.base import Config as Config
    from saev_core.config.base import PluginConfig as PluginConfig
    from saev_core.config.base import PluginRef as PluginRef
    from saev_core.config.run import RunConfig as RunConfig
    from saev_core.config.stages import EvaluateConfig as EvaluateConfig
    from saev_core.config.stages import IndexConfig as IndexConfig
    from saev_core.config.stages import NamesConfig as NamesConfig
    from saev_core.config.stages import ReadConfig as ReadConfig
    from saev_core.config.stages import RecordConfig as RecordConfig
    from saev_core.config.stages import TrainConfig as TrainConfig
    from saev_core.data.dataset import DatasetConfig as DatasetConfig
    from saev_core.data.dataset import ImageDataset as ImageDataset
    from saev_core.data.dataset import KnownTruth as KnownTruth
    from saev_core.data.dataset import load_dataset as load_dataset
    from saev_core.data.decode import open_rgb as open_rgb
    from saev_core.data.download import Archive as Archive
    from saev_core.errors import BadImageError as BadImageError
    from saev_core.errors import SaevError as SaevError
    from saev_core.evaluation.heldout import Heldout as Heldout
    from saev_core.evaluation.known_truth import recover as recover
    from saev_core.evaluation.measure import evaluate as evaluate
    from saev_core.features.build import index_features as index_features
    from saev_core.features.index import FeatureIndex as FeatureIndex
    from saev_core.interventions.apply import apply_edits as apply_edits
    from saev_core.interventions.downstream import Downstream as Downstream
    from saev_core.interventions.edit import Edit as Edit
    from saev_core.interventions.steering import steering as steering
    from saev_core.models.base import ModelConfig as ModelConfig
    from saev_core.models.base import TextSpace as TextSpace
    from saev_core.models.base import VisionModel as VisionModel
    from saev_core.models.base import load_model as load_model
    from saev_core.pipeline.pipeline import Pipeline as Pipeline
    from saev_core.runs.hooks import hookimpl as hookimpl
    from saev_core.runs.run import Run as Run
    from saev_core.runs.viewer import RunViewer as RunViewer
    from saev_core.sae.base import SAE as SAE
    from saev_core.sae.base import make_sae as make_sae
    from saev_core.sae.checkpoint import Checkpoint as Checkpoint
    from saev_core.sae.codes import Codes as Codes
    from saev_core.sae.config import SAEConfig as SAEConfig
    from saev_core.sae.norm import Norm as Norm
    from saev_core.sae.selection import Selection as Selection
    from saev_core.sae.step import Progress as Progress
    from saev_core.sae.step import Step as Step
    from saev_core.sae.training_defaults import TrainingDefaults as TrainingDefaults
    from saev_core.tasks.context import TaskContext as TaskContext
    from saev_core.tasks.probe import Probe as Probe
    from saev_core.tasks.task import Task as Task
    from saev_core.tasks.task import verb as verb
    from saev_core.tasks.viewer_tab import TabHost as TabHost
    from saev_core.tasks.viewer_tab import ViewerTab as ViewerTab
    from saev_core.training.sae_trainer import TrainSpec as TrainSpec
    from saev_core.training.train import train as train
    from saev_core.types import Box as Box
    from saev_core.types import Example as Example
    from saev_core.types import Grid as Grid
    from saev_core.types import Site as Site
    from saev_core.workspace import Workspace as Workspace

__version__ = "0.1.0"

_HOME = {
    "ActivationSource": "saev_core.activations.sources.base",
    "ActivationStore": "saev_core.activations.store.store",
    "Archive": "saev_core.data.download",
    "ArraySource": "saev_core.activations.sources.array",
    "BadImageError": "saev_core.errors",
    "Box": "saev_core.types",
    "Checkpoint": "saev_core.sae.checkpoint",
    "Codes": "saev_core.sae.codes",
    "Config": "saev_core.config.base",
    "DatasetConfig": "saev_core.data.dataset",
    "Downstream": "saev_core.interventions.downstream",
    "Edit": "saev_core.interventions.edit",
    "EvaluateConfig": "saev_core.config.stages",
    "Example": "saev_core.types",
    "FeatureIndex": "saev_core.features.index",
    "Grid": "saev_core.types",
    "Heldout": "saev_core.evaluation.heldout",
    "ImageDataset": "saev_core.data.dataset",
    "ImageVectors": "saev_core.activations.sources.image_vectors",
    "IndexConfig": "saev_core.config.stages",
    "KnownTruth": "saev_core.data.dataset",
    "LiveSource": "saev_core.activations.sources.live",
    "ModelConfig": "saev_core.models.base",
    "NamesConfig": "saev_core.config.stages",
    "Norm": "saev_core.sae.norm",
    "Pipeline": "saev_core.pipeline.pipeline",
    "PluginConfig": "saev_core.config.base",
    "PluginRef": "saev_core.config.base",
    "Probe": "saev_core.tasks.probe",
    "Progress": "saev_core.sae.step",
    "ReadConfig": "saev_core.config.stages",
    "RecordConfig": "saev_core.config.stages",
    "Run": "saev_core.runs.run",
    "RunConfig": "saev_core.config.run",
    "RunViewer": "saev_core.runs.viewer",
    "SAE": "saev_core.sae.base",
    "SAEConfig": "saev_core.sae.config",
    "SaevError": "saev_core.errors",
    "Selection": "saev_core.sae.selection",
    "Site": "saev_core.types",
    "Step": "saev_core.sae.step",
    "StoreMeta": "saev_core.activations.store.meta",
    "StoreSource": "saev_core.activations.sources.stored",
    "StoredVectors": "saev_core.activations.sources.stored_vectors",
    "TabHost": "saev_core.tasks.viewer_tab",
    "Task": "saev_core.tasks.task",
    "TaskContext": "saev_core.tasks.context",
    "TextSpace": "saev_core.models.base",
    "TrainConfig": "saev_core.config.stages",
    "TrainSpec": "saev_core.training.sae_trainer",
    "TrainingDefaults": "saev_core.sae.training_defaults",
    "ViewerTab": "saev_core.tasks.viewer_tab",
    "VisionModel": "saev_core.models.base",
    "Workspace": "saev_core.workspace",
    "apply_edits": "saev_core.interventions.apply",
    "evaluate": "saev_core.evaluation.measure",
    "hookimpl": "saev_core.runs.hooks",
    "index_features": "saev_core.features.build",
    "load_dataset": "saev_core.data.dataset",
    "load_model": "saev_core.models.base",
    "make_sae": "saev_core.sae.base",
    "open_rgb": "saev_core.data.decode",
    "record": "saev_core.activations.recording.record",
    "recover": "saev_core.evaluation.known_truth",
    "steering": "saev_core.interventions.steering",
    "train": "saev_core.training.train",
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
