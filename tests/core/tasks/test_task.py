"""Tasks: verbs and their options, what they are given, and the command `saev task`."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from commands import BuildWheel, Saev
from pydantic import Field

from saev_core import Run, RunConfig, Task, TaskContext, verb
from saev_core.cli.flags_from_config import options, shape_of
from saev_core.config.base import Config, validate
from saev_core.errors import ConfigError, DatasetError, PluginError, RunError, UsageError
from saev_core.tasks.task import NoOptions, UnknownVerbError, plain
from saev_core.testing.task_contract import SMALL, _prepared

if TYPE_CHECKING:
    from saev_core.types import Grid


class Fit(Config):
    lr: tuple[float, ...] = (1e-3, 1e-2)
    """Learning rates."""
    n_epochs: int = Field(default=20, ge=1)
    """Passes."""
    tokens: Literal["cls", "mean"] = "cls"
    """Tokens."""
    bias: bool = True
    """Fit a bias."""
    edit: dict[int, float] = Field(default_factory=dict)
    """Feature and strength."""
    site: int | None = -1
    """Block."""


class Example(Task):
    @verb
    def fit(self, cx: TaskContext, cfg: Fit) -> Mapping[str, Any]:
        """Fit it."""
        return {"lr": cfg.lr, "mean": np.float32(0.5), "found": np.arange(3), "none": float("nan")}

    @verb
    def look_at(self, cx: TaskContext) -> None:
        """Look at it."""

    def helper(self) -> None: ...


class Better(Example):
    @verb
    def fit(self, cx: Grid, cfg: Fit) -> dict:  # the first annotation is there for type checking only
        """Fit it better."""
        return {"better": True}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small run with everything in it. Read only."""
    settings = json.dumps(SMALL, sort_keys=True)
    return _prepared(settings, tmp_path_factory.getbasetemp() / f"task-contract-{abs(hash(settings))}")


def context(run: Run, **more: Any) -> TaskContext:
    return TaskContext(run, "example", device="cpu", **more)


def test_verbs_are_what_is_marked_in_the_order_of_writing() -> None:
    verbs = Example.verbs()
    assert list(verbs) == ["fit", "look-at"]
    assert verbs["fit"].config is Fit
    assert verbs["look-at"].config is NoOptions
    assert Better.verbs()["fit"].help == "Fit it better."
    assert list(Better.verbs()) == ["fit", "look-at"]


def test_an_unknown_verb_is_told_the_nearest_and_all() -> None:
    with pytest.raises(UnknownVerbError, match=r"no verb named 'fti'; did you mean fit\? Available: fit, look-at\."):
        Example.find("fti")


def test_what_a_verb_returns_becomes_plain_json(made: Run) -> None:
    assert Example().call(context(made), "fit") == {"lr": [1e-3, 1e-2], "mean": 0.5, "found": [0, 1, 2], "none": None}
    assert Example().call(context(made), "look-at") == {}
    assert Better().call(context(made), "fit", Fit(n_epochs=3)) == {"better": True}


def test_plain_unpacks_numbers_paths_and_tensors_and_refuses_the_rest() -> None:
    given = {1: torch.tensor([1.5, math.inf]), "a": (Path("b"), True, None), np.int64(3): {np.float64(2.0)}, "c": Fit(lr=(1,))}
    assert plain(given) == {"1": [1.5, None], "a": ["b", True, None], "3": [2.0], "c": Fit(lr=(1.0,)).model_dump(mode="json")}
    with pytest.raises(TypeError, match="a object"):
        plain({"a": [object()]})


def test_mistakes_of_an_author_are_named() -> None:
    class Reserved(Config):
        device: str = ""
        """Where."""

    class Taken(Task):
        @verb
        def go(self, cx: TaskContext, cfg: Reserved) -> None:
            """Go."""

    class NotAConfig(Task):
        @verb
        def go(self, cx: TaskContext, cfg: int) -> None:
            """Go."""

    class TooMuch(Task):
        @verb
        def go(self, cx: TaskContext, cfg: Fit, more: int) -> None:
            """Go."""

    class Wrong(Task):
        @verb
        def go(self, cx: TaskContext) -> Any:
            """Go."""
            return {"a": object()}

    # Annotations of classes that are local to this function cannot be looked up; an author's stand in a module.
    Taken.go.__annotations__["cfg"] = Reserved
    for task, text in [
        (Taken, "option name device is reserved"),
        (NotAConfig, "not a class derived"),
        (TooMuch, "wrong signature; a verb is defined as"),
        (Task, "no method"),
    ]:
        with pytest.raises(PluginError, match=text):
            task.verbs()
    with pytest.raises(PluginError, match="a object"):
        Wrong().call(TaskContext(Run("nowhere", RunConfig(), {}), "wrong"), "go")


def test_the_context_opens_what_the_run_holds(made: Run) -> None:
    cx = context(made)
    assert cx.store().n_images == len(cx.dataset()) == 64
    assert cx.sae_name() == "topk"
    assert cx.checkpoint() is cx.checkpoint("topk")
    assert cx.index().d_sae == cx.checkpoint().sae.cfg.d_sae
    assert cx.model().d_model == cx.store().meta.d_model
    assert cx.device == torch.device("cpu")
    assert cx.folder() == made.path / "tasks" / "example"
    assert cx.folder().is_dir()
    assert cx.folder("probe") == made.path / "tasks" / "example" / "probe"


def test_the_context_refuses_in_a_line_what_is_missing_or_anothers(made: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no SAE 'tpok'; did you mean topk\?"):
        context(made).checkpoint("tpok")
    with pytest.raises(DatasetError, match=r"not the ones recorded.*--dataset NAME:FOLDER"):
        context(made, dataset="shapes:63").dataset()
    with pytest.raises(DatasetError, match=r"If the images have moved.*--dataset"):
        context(made, dataset=f"image-folder:{tmp_path / 'gone'}").dataset()
    empty = Run.create(tmp_path / "empty", validate(RunConfig, dict(SMALL)))
    with pytest.raises(RunError, match="no trained SAE"):
        context(empty).checkpoint()
    with pytest.raises(RunError, match="no activations yet"):
        context(empty).store()
    assert len(context(empty).dataset()) == 64


def test_tables_without_a_screen_go_to_say(made: Run) -> None:
    said: list[str] = []
    context(made, say=said.append).table([[1, "a"]], ["n", "name"])
    assert said == ["n  name", "1  a"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ({"lr": ["1e-3,2", "3"]}, {"lr": (1e-3, 2.0, 3.0)}),
        ({"edit": ["17=1.5,3=-2"]}, {"edit": {17: 1.5, 3: -2.0}}),
        ({"site": "none"}, {"site": None}),
        ({"site": "-2", "bias": False}, {"site": -2, "bias": False}),
        ({"n_epochs": None, "lr": []}, {}),
    ],
)
def test_what_is_typed_becomes_options(typed: dict[str, Any], meant: dict[str, Any]) -> None:
    assert options(Fit, typed) == Fit(**meant)


def test_the_later_of_file_flag_and_set_wins(tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_text('n_epochs = 3\nlr = [0.1]\ntokens = "mean"\n')
    found = options(Fit, {"n_epochs": "4", "lr": ["0.2"]}, config_file=str(tmp_path / "task.toml"), assignments=["lr=[0.3]", "n-epochs=5"])
    assert found == Fit(n_epochs=5, lr=(0.3,), tokens="mean")


def test_a_wrong_value_is_one_line_that_names_its_place() -> None:
    with pytest.raises(ConfigError, match=r"^lr\.1: Input should be a valid number.*\(got 'x'\)\.$"):
        options(Fit, {"lr": ["1,x"]})
    with pytest.raises(ConfigError, match=r"^n_epoch: unknown; did you mean n_epochs\?$"):
        options(Fit, {}, assignments=["n_epoch=3"])
    with pytest.raises(UsageError, match=r"--edit takes pairs such as 17=1\.5, not '5'"):
        options(Fit, {"edit": ["5"]})


@pytest.mark.parametrize(
    ("annotation", "shape"),
    [
        (int | None, "one"),
        (bool | None, "one"),
        (bool, "bool"),
        (list[str], "list"),
        (tuple[int, ...] | None, "list"),
        (dict[str, int], "dict"),
    ],
)
def test_a_field_is_typed_after_its_kind(annotation: Any, shape: str) -> None:
    assert shape_of(annotation)[0] == shape


SOURCE = """
    from saev_core import Task, verb
    from saev_core.config.base import Config

    class Options(Config):
        n_epochs: int = 20
        '''Passes over the data.'''
        lr: tuple[float, ...] = (0.1,)
        '''Learning rates.'''
        bias: bool = True
        '''Fit a bias.'''

    class Demo(Task):
        '''What it is good for.'''

        @verb
        def train(self, cx, cfg: Options):
            '''Train it.'''
            cx.table([[1, 2]], ["a", "b"])
            return cfg.model_dump()
"""


@pytest.fixture(scope="module")
def site(build_wheel: BuildWheel, install: Callable[..., Path]) -> Path:
    """A distribution with one task that works, one that cannot be imported and one that is no task."""
    groups = {"saev.tasks": {"demo": "demo_task:Demo", "rotten": "rotten_task:Gone", "hollow": "demo_task:Options"}}
    return install(build_wheel("demo-task", groups, {"demo_task.py": SOURCE}))


@pytest.mark.slow
def test_tasks_are_listed_and_done_from_the_command_line(saev: Saev, site: Path, made: Run) -> None:
    listed = json.loads(saev("task", "--json", path=site).stdout)
    assert {"demo", "rotten", "hollow"} <= {each["name"] for each in listed}
    shown = saev("task", "demo", path=site)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "What it is good for." in shown.stdout
    assert "train  Train it." in shown.stdout
    drawn = saev("task", "demo", "train", "--help", path=site).stdout
    assert all(text in drawn for text in ("--n-epochs", "--no-bias", "NUMBER,..", "--set", "--dataset", "saev task demo train"))
    done = saev("task", "demo", "train", made.path, "--lr", "-1,2", "--no-bias", "--set", "n_epochs=3", "--json", path=site)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"n_epochs": 3, "lr": [-1.0, 2.0], "bias": False}
    assert saev("task", "demo", "train", made.path, path=site).stdout == "a  b\n1  2\n"


@pytest.mark.slow
def test_checking_plugins_looks_at_the_verbs_of_tasks(saev: Saev, site: Path) -> None:
    done = saev("plugins", "--check", "--json", path=site)
    found = {each["name"]: each for each in json.loads(done.stdout) if each["dist"] == "demo-task"}
    assert found["demo"]["ok"]
    assert "cannot be imported" in found["rotten"]["error"]
    assert "is not a class derived from saev_core's Task" in found["hollow"]["error"]


@pytest.mark.slow
def test_wrong_usage_of_a_task_is_one_line(saev: Saev, site: Path, tmp_path: Path) -> None:
    for code, said, words in [
        (2, "no task plugin named 'dmeo'; did you mean demo", ["dmeo"]),
        (2, "no verb named 'trian'; did you mean train? Available: train.", ["demo", "trian"]),
        (2, "Missing argument 'RUN'", ["demo", "train"]),
        (2, "--n-epochs", ["demo", "train", tmp_path, "--n-epoch", "3"]),
        (2, "n_epochs: Input should be a valid integer", ["demo", "train", tmp_path, "--n-epochs", "x"]),
        (1, "is not a run", ["demo", "train", tmp_path]),
        (1, "cannot be imported: ModuleNotFoundError", ["rotten", "go"]),
        (1, "is not a class derived from saev_core's Task", ["hollow", "go"]),
    ]:
        done = saev("task", *words, path=site)
        assert done.returncode == code, done
        assert said in done.stderr, done.stderr
        assert done.stderr.startswith("saev: ")
        assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" in saev("task", "demo", "train", tmp_path, "--debug", path=site).stderr


@pytest.mark.slow
def test_a_new_task_installs_and_keeps_to_the_contract(saev: Saev, tmp_path: Path, made: Run) -> None:
    done = saev("plugins", "new", "my-task", "--kind", "task", "--in", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "saev task my-task" in done.stdout
    folder = tmp_path / "saev-my-task"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(folder)]
    tested = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout
