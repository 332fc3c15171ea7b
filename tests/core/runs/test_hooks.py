from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from commands import BuildWheel

from saev_core.config.run import RunConfig
from saev_core.errors import PluginError
from saev_core.runs.hooks import Hooks, Observers, hookimpl
from saev_core.runs.run import Run


class Watcher:
    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    @hookimpl
    def stepped(self, name: str, step: int) -> None:
        self.seen.append((name, step))

    @hookimpl
    def viewer_tabs(self, run: Run) -> list[str]:
        return [f"tab of {run.path.name}"]


class Clumsy:
    calls = 0

    @hookimpl
    def stepped(self, metrics: Mapping[str, float]) -> None:
        Clumsy.calls += 1
        raise ZeroDivisionError("the tracker's server is down")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "a", RunConfig())


def test_an_observer_takes_only_the_arguments_it_names(run: Run) -> None:
    watcher = Watcher()
    Observers(watcher, discover=False).emit("stepped", run=run, name="topk", step=3, metrics={})
    assert watcher.seen == [("topk", 3)]


def test_what_observers_give_back_is_gathered(run: Run) -> None:
    assert Observers(Watcher(), Clumsy(), discover=False).emit("viewer_tabs", run=run) == [["tab of a"]]


def test_a_raising_observer_is_logged_with_its_traceback_and_dropped(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    watcher, clumsy = Watcher(), Clumsy()
    observers = Observers(clumsy, watcher, discover=False)
    with caplog.at_level(logging.ERROR):
        for step in (1, 2):
            observers.emit("stepped", run=run, name="topk", step=step, metrics={})
    assert Clumsy.calls == 1
    assert watcher.seen == [("topk", 1), ("topk", 2)]
    assert "server is down" in caplog.text
    assert "Traceback" in caplog.text


def test_two_runs_share_no_observer(run: Run) -> None:
    watcher = Watcher()
    Observers(watcher, discover=False)
    Observers(discover=False).emit("stepped", run=run, name="topk", step=1, metrics={})
    assert watcher.seen == []


def test_a_misspelt_hook_fails_at_registration_and_names_the_nearest() -> None:
    class Misspelt:
        @hookimpl
        def steped(self, step: int) -> None: ...

    observers = Observers(discover=False)
    with pytest.raises(PluginError, match=r"observer Misspelt: unknown hook 'steped'; did you mean stepped\?"):
        observers.add(Misspelt())
    observers.add(Watcher())


def test_a_misspelt_argument_fails_at_registration_and_the_right_ones_are_listed() -> None:
    class Misspelt:
        @hookimpl
        def stepped(self, stp: int) -> None: ...

    with pytest.raises(PluginError, match=r"hook 'stepped' has no argument 'stp'; its arguments are run, name, step, metrics"):
        Observers(Misspelt(), discover=False)


def test_installed_observers_are_found_and_a_broken_one_is_left_out(
    build_wheel: BuildWheel,
    install: Callable[..., Path],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    good = """
        from saev_core import hookimpl

        class Note:
            @hookimpl
            def run_started(self, run):
                (run.path / "noted").touch()
    """
    wheels = [
        build_wheel("notes", {"saev.hooks": {"note": "notes_of_runs:Note"}}, {"notes_of_runs.py": good}),
        build_wheel("rusty", {"saev.hooks": {"rusty": "rusty_hook:Gone"}}, {"rusty_hook.py": "1 / 0\n"}),
    ]
    monkeypatch.syspath_prepend(str(install(*wheels)))
    Observers().emit("run_started", run=run, config={})
    assert (run.path / "noted").exists()
    assert "rusty" in caplog.text
    wrong = good.replace("run_started", "run_begun")
    monkeypatch.syspath_prepend(str(install(build_wheel("wrong", {"saev.hooks": {"wrong": "wrong_hook:Note"}}, {"wrong_hook.py": wrong}))))
    with pytest.raises(PluginError, match=r"observer wrong \(from wrong 0\.1\.0\): unknown hook 'run_begun'"):
        Observers()


def test_every_hook_says_what_it_tells() -> None:
    for name, hook in vars(Hooks).items():
        if not name.startswith("_"):
            assert hook.__doc__, name
