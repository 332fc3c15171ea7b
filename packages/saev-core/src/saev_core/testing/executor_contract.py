"""`ExecutorContract`: tests that every executor plugin must pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

from saev_core.config.base import PluginConfig
from saev_core.errors import SaevError
from saev_core.testing.model_contract import _Plugin


class ExecutorProtocol(Protocol):
    """The interface that `ExecutorContract` tests."""

    def submit(self, argv: list[str], folder: Path) -> int: ...


class ExecutorContract(_Plugin):
    """Tests of an executor whose results this process can see: local, or on a shared disk."""

    executor: ClassVar[Callable[..., Any]]
    """The executor's class, or a function that takes its Config."""
    config: ClassVar[PluginConfig | None] = None
    """Its options; by default `Config()`."""

    def make(self) -> ExecutorProtocol:
        factory = self._factory("executor")
        made: ExecutorProtocol = factory(self.config or factory.Config())
        return made

    def test_a_command_that_works_gives_0(self, tmp_path: Path) -> None:
        assert self.make().submit(["saev", "--help"], tmp_path) == 0

    def test_a_command_that_is_not_there_gives_2(self, tmp_path: Path) -> None:
        assert self.make().submit(["saev", "no-such-command"], tmp_path) == 2

    def test_anything_but_saev_is_refused(self, tmp_path: Path) -> None:
        try:
            self.make().submit(["true"], tmp_path)
        except SaevError:
            return
        raise AssertionError("an executor runs only saev commands; others must raise a SaevError")
