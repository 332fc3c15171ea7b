"""Testing tools shipped with the library: contract tests for plugins, and stores and runs of known content.

Names are resolved on first use. `class TestMine(ModelContract): model = Mine` is a complete plugin test.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saev_core.activations.sources.array import ArraySource as ArraySource
    from saev_core.data.shapes import Shapes as Shapes
    from saev_core.models.tiny import Tiny as Tiny
    from saev_core.testing.dataset_contract import DatasetContract as DatasetContract
    from saev_core.testing.model_contract import ModelContract as ModelContract
    from saev_core.testing.sae_contract import SAEContract as SAEContract
    from saev_core.testing.stores_in_memory import store_of as store_of
    from saev_core.testing.task_contract import TaskContract as TaskContract
    from saev_core.testing.tracker_contract import TrackerContract as TrackerContract

_HOME = {
    "ArraySource": "saev_core.activations.sources.array",
    "DatasetContract": "saev_core.testing.dataset_contract",
    "ModelContract": "saev_core.testing.model_contract",
    "SAEContract": "saev_core.testing.sae_contract",
    "Shapes": "saev_core.data.shapes",
    "TaskContract": "saev_core.testing.task_contract",
    "Tiny": "saev_core.models.tiny",
    "TrackerContract": "saev_core.testing.tracker_contract",
    "store_of": "saev_core.testing.stores_in_memory",
}
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
