from typing import ClassVar

from saev_core.testing import DatasetContract, ModelContract, SAEContract, TaskContract, TrackerContract
from saev_example import Best, Classes, DinoV3, Lasso, Stripes


class TestDinoV3(ModelContract):
    model = DinoV3


class TestStripes(DatasetContract):
    dataset = Stripes


class TestLasso(SAEContract):
    sae = Lasso
    planted_options: ClassVar = {"d_sae": 128, "sparsity": 3.0}


class TestBest(TrackerContract):
    tracker = Best


class TestClasses(TaskContract):
    task = Classes
