"""`tensorboard`: what it was told, read back by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path

import pytest
from logged import tensorboard_logged, tensorboard_runs

from saev_core.runs.run import Run
from saev_core.testing import TrackerContract
from saev_core.testing.tracker_contract import NAMES, Heard, Logged
from saev_tensorboard import TensorBoard, TensorBoardConfig


class TestTensorBoard(TrackerContract):
    tracker = TensorBoard

    def logged(self, run: Run) -> Logged:
        return tensorboard_logged(run.path / "tensorboard", "train")

    def logged_heldout(self, run: Run) -> Logged:
        return tensorboard_logged(run.path / "tensorboard", "heldout")

    def test_each_sae_is_a_run_with_its_settings_and_all_metrics(self, tmp_path: Path) -> None:
        run = self._run(tmp_path)
        self.follow(run, Heard())
        found = tensorboard_runs(run.path / "tensorboard")
        assert tuple(found) == NAMES
        for name, events in found.items():
            assert {f"train/{key}" for key in ("loss", "nmse", "l0", "dead", "lr", "vectors_per_s")} <= set(events.Tags()["scalars"])
            (text,) = (event.tensor_proto.string_val[0].decode() for event in events.Tensors("settings/text_summary"))
            assert f'"seed": {NAMES.index(name)}' in text
            assert '"fingerprint"' in text


class TestGathered(TrackerContract):
    """Runs side by side in a folder of their own."""

    tracker = TensorBoard

    @pytest.fixture(autouse=True)
    def _gather(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "all"

    def make(self) -> TensorBoard:
        return TensorBoard(TensorBoardConfig(folder=str(self.folder)))

    def logged(self, run: Run) -> Logged:
        return tensorboard_logged(self.folder / run.path.name, "train")
