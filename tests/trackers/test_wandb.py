"""`wandb`, offline: what it was told, read back from the files that `wandb sync` would upload."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from logged import wandb_logged, wandb_parts

from saev_core.runs.run import Run
from saev_core.testing import TrackerContract
from saev_core.testing.tracker_contract import NAMES, Heard, Logged, Stop
from saev_wandb import WandB, WandBConfig


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


class TestWandB(TrackerContract):
    tracker = WandB

    def follow(self, run: Run, heard: Heard, until: int = 0) -> None:
        # wandb names its folders by the second; no process resumes within the one in which another began.
        while list(run.path.glob(f"wandb/offline-run-{time.strftime('%Y%m%d_%H%M%S')}-*")):
            time.sleep(0.05)
        super().follow(run, heard, until)

    def logged(self, run: Run) -> Logged:
        return wandb_logged(run, "train")

    def logged_heldout(self, run: Run) -> Logged:
        return wandb_logged(run, "heldout")

    def test_each_sae_is_a_run_of_the_group_with_its_settings_and_all_metrics(self, tmp_path: Path) -> None:
        run = self._run(tmp_path)
        self.follow(run, Heard())
        found = wandb_parts(run)
        assert set(found) == set(NAMES)
        for name, (each,) in found.items():
            (begun,) = (record.run for record in each if record.WhichOneof("record_type") == "run")
            assert (begun.run_group, begun.project, begun.job_type) == ("run", "saev", "train")
            config = {item.key: json.loads(item.value_json) for item in begun.config.update}
            assert config["train"]["seed"] == NAMES.index(name)
            assert "fingerprint" in config["source"]["store"]
            assert {"loss", "nmse", "l0", "dead", "lr", "vectors_per_s"} <= set(wandb_logged(run, "train")[name][4])
            assert [record.exit.exit_code for record in each if record.WhichOneof("record_type") == "exit"] == [0]

    def test_a_resumed_run_has_one_id_and_a_failed_part_says_so(self, tmp_path: Path) -> None:
        run = self._run(tmp_path)
        with pytest.raises(Stop):
            self.follow(run, Heard(), until=24)
        self.follow(run, Heard())
        for files in wandb_parts(run).values():
            assert len(files) == 2
            ids = {record.run.run_id for each in files for record in each if record.WhichOneof("record_type") == "run"}
            assert len(ids) == 1
            codes = [record.exit.exit_code for each in files for record in each if record.WhichOneof("record_type") == "exit"]
            assert codes == [1, 0]

    def test_training_with_other_settings_is_another_run(self, tmp_path: Path) -> None:
        run = self._run(tmp_path)
        tracker = WandB(WandBConfig(project="mine"))
        tracker.stepped(run, "one", 4, {"nmse": 0.5})
        tracker.run_ended(None)
        time.sleep(1)  # wandb names its folders by the second
        other = Run(run.path, run.config.model_copy(update={"device": "cpu"}), run.plugins)
        tracker.stepped(other, "one", 4, {"nmse": 0.4})
        tracker.run_ended(None)
        first, second = wandb_parts(run)["one"]
        ids = [record.run.run_id for each in (first, second) for record in each if record.WhichOneof("record_type") == "run"]
        assert len(set(ids)) == 2

    def test_without_a_key_the_run_is_kept_offline(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.delenv("WANDB_MODE")
        monkeypatch.setenv("NETRC", str(tmp_path / "none"))
        run = self._run(tmp_path)
        tracker = WandB()
        tracker.stepped(run, "one", 4, {"nmse": 0.5})
        tracker.run_ended(None)
        assert "one is kept offline in the run folder" in caplog.text
        assert wandb_logged(run, "train") == {"one": {4: {"nmse": 0.5}}}
