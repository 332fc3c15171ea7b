"""Every task passes the contract for third-party tasks."""

from __future__ import annotations

from typing import ClassVar

import pytest

from saev_core.testing import TaskContract
from saev_tasks.classification.task import Classification
from saev_tasks.fidelity import Fidelity
from saev_tasks.probe1d.task import Probe1D
from saev_tasks.semprobe import SemProbe
from saev_tasks.semseg.task import SemSeg


@pytest.mark.slow
class TestClassification(TaskContract):
    task = Classification
    without_sae = frozenset({"train"})
    options: ClassVar = {
        "train": {"lr": [0.01], "weight_decay": [1e-3], "epochs": 3},
        "manipulate": {"image": 3, "edit": {5: 0.0}},
        "control": {"sizes": [1, 2], "strengths": [0.0], "draws": 2, "n_train": 20},
    }


@pytest.mark.slow
class TestFidelity(TaskContract):
    task = Fidelity
    options: ClassVar = {"measure": {"n_test": 6, "n_train": 40, "k": 3}}


@pytest.mark.slow
class TestProbe1D(TaskContract):
    task = Probe1D
    options: ClassVar = {"fit": {"sparse": [1], "dense_units": 2000}}


@pytest.mark.slow
class TestSemSeg(TaskContract):
    task = SemSeg
    without_sae = frozenset({"train", "validate"})
    options: ClassVar = {
        "train": {"lr": [0.03], "weight_decay": [1e-4], "epochs": 3},
        "validate": {"examples": 1},
        "propose": {"n": 3},
        "manipulate": {"image": 1, "edit": {3: 0.0}},
        "control": {"sizes": [1, 2], "strengths": [0.0], "draws": 2, "n_train": 20},
    }


@pytest.mark.slow
class TestSemProbe(TaskContract):
    task = SemProbe
    without_store = frozenset({"negatives"})
    options: ClassVar = {
        "negatives": {"n_images": 4, "skip": ["disk"]},
        "score": {"per_class": 6, "n_negatives": 12},
        "sheets": {"per_class": 6, "n_negatives": 12, "top_k": 1, "n_positive": 2, "n_negative": 1},
    }
