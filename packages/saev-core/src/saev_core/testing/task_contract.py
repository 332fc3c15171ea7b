"""`TaskContract`: tests that every task plugin must pass, on a small run of `tiny` on `shapes`, with labels and masks.

class TestMine(TaskContract):
    task = Mine
    options = {"train": {"n_epochs": 2}, "manipulate": {"image": 3, "edit": {5: 2.0}}}    # optional
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from saev_core.config.base import Config, validate
from saev_core.config.run import RunConfig
from saev_core.errors import SaevError
from saev_core.pipeline.pipeline import Pipeline
from saev_core.runs.run import Run
from saev_core.tasks.context import TaskContext
from saev_core.tasks.task import Task

SMALL: dict[str, Any] = {
    "dataset": {"name": "shapes", "options": {"n": 64, "size": 96}},
    "sae": {"name": "topk", "options": {"d_sae": 64, "k": 8}},
    "record": {"layers": [-2, -1]},
    "train": {"n_tokens": 6000, "n_init": 512, "batch_size": 256},
    "device": "cpu",
}
"""Configuration of the run used for the tests."""


@functools.cache
def _prepared(settings: str, folder: Path) -> Run:
    run = Run.create(folder, validate(RunConfig, json.loads(settings)))
    Pipeline(run).run_stages(["record", "train", "evaluate", "index"])
    return run


class TaskContract:
    """Tests of a `Task`: every verb is documented, works on a real run, returns JSON and changes no files but its own."""

    task: ClassVar[type[Task]]
    """The task's class."""
    options: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Options by verb: required ones, and any that make the verb fast. Verbs run in the order of their definition."""
    without_sae: ClassVar[frozenset[str]] = frozenset()
    """Verbs that need only recorded activations, no SAE."""
    without_store: ClassVar[frozenset[str]] = frozenset()
    """Verbs that need neither, only the run's images or model."""
    settings: ClassVar[Mapping[str, Any]] = SMALL
    """The run's configuration."""

    @pytest.fixture
    def made(self, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
        """A private copy of a complete run: recorded, trained, evaluated, indexed."""
        settings = json.dumps(self.settings, sort_keys=True)
        ready = _prepared(settings, tmp_path_factory.getbasetemp() / f"task-contract-{abs(hash(settings))}")
        shutil.copytree(ready.path, tmp_path / "run")
        return Run.open(tmp_path / "run")

    def context(self, run: Run) -> TaskContext:
        """The context passed to the verbs."""
        return TaskContext(run, "under-test", device="cpu")

    def config(self, name: str) -> Config:
        """The options used to test a verb."""
        return validate(self.task.find(name).config, dict(self.options.get(name, {})))

    def test_every_verb_says_in_a_line_what_it_does(self) -> None:
        for each in self.task.verbs().values():
            first = each.help.partition("\n")[0]
            assert 5 < len(first) <= 140, f"{each.name}: the first line of its docstring is its help, but is {first!r}"

    def test_every_option_is_documented(self) -> None:
        for each in self.task.verbs().values():
            for key, field in each.config.model_fields.items():
                assert field.description, f"{each.name}: option {key} has no docstring"

    def test_options_at_their_defaults_are_valid(self) -> None:
        for each in self.task.verbs().values():
            given = self.options.get(each.name, {})
            required = {key: given[key] for key, field in each.config.model_fields.items() if field.is_required() and key in given}
            validate(each.config, required, where=each.name)

    def test_a_folder_that_is_no_run_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SaevError, match="is not a run"):
            Run.open(tmp_path)

    def test_a_run_in_which_nothing_is_made_is_refused_in_a_line(self, tmp_path: Path) -> None:
        run = Run.create(tmp_path / "empty", validate(RunConfig, dict(self.settings)))
        for name in self.task.verbs():
            if name not in self.without_store:
                self._refused(run, name)

    def test_a_run_without_an_sae_is_refused_in_a_line(self, made: Run, tmp_path: Path) -> None:
        for name in self.task.verbs():
            if name not in self.without_sae | self.without_store:
                shutil.copytree(made.path, tmp_path / name, ignore=shutil.ignore_patterns("sae", "features"))
                self._refused(Run.open(tmp_path / name), name)

    def _refused(self, run: Run, name: str) -> None:
        cfg = self.config(name)
        with pytest.raises(SaevError) as caught:
            self.task().call(self.context(run), name, cfg)
        assert "\n" not in str(caught.value), f"{name}: {caught.value}"

    def test_verbs_answer_in_json_and_leave_alone_what_they_did_not_make(self, made: Run, capfd: pytest.CaptureFixture[str]) -> None:
        before = _listing(made.path)
        for name in self.task.verbs():
            found = self.task().call(self.context(made), name, self.config(name))
            assert json.loads(json.dumps(found, allow_nan=False)) == found, f"{name} does not return plain JSON"
        after = _listing(made.path)
        changed = [path for path, state in before.items() if after.get(path) != state]
        assert not changed, f"changed or removed: {changed}"
        added = [path for path in after if path not in before and path.parts[0] not in ("tasks", "results")]
        assert not added, f"written outside tasks/ and results/: {added}"
        left = [path for path in after if path not in before and path.name.startswith(".")]
        assert not left, f"temporary files left behind: {left}"
        assert capfd.readouterr().out == "", "a task must not print; use cx.say and cx.table"


def _listing(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and modification time of every file except results, which a task may rewrite."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "results"]
    return {path.relative_to(folder): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}
