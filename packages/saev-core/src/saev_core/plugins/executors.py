"""`Executor`: where commands run. It gets an argument list, never a pickled function."""

from __future__ import annotations

import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from saev_core.config.base import PluginConfig, PluginRef
from saev_core.errors import PluginError, UsageError
from saev_core.plugins.registry import resolve


class Executor(ABC):
    """Base of every executor plugin: define `submit`."""

    Config: ClassVar[type[PluginConfig]] = PluginConfig

    def __init__(self, cfg: PluginConfig) -> None:
        self.cfg = cfg

    @abstractmethod
    def submit(self, argv: Sequence[str], folder: Path) -> int:
        """Run one `saev` command line with `folder` as its working directory; returns its exit code.

        Args:
            argv: begins with `saev`, such as `["saev", "train", "runs/a", "--seed", "1"]`.
        """


class Local(Executor):
    """Runs commands here, one after another, with the Python that runs this one."""

    def submit(self, argv: Sequence[str], folder: Path) -> int:
        if not argv or argv[0] != "saev":
            raise UsageError(f"an executor runs saev commands, not {' '.join(argv) or 'an empty one'}.")
        return subprocess.run([sys.executable, "-m", "saev_core.cli", *argv[1:]], cwd=folder, check=False).returncode


def load_executor(ref: PluginRef | str) -> Executor:
    """An executor plugin, built.

    Raises:
        UnknownPluginError, PluginError, ConfigError: as `plugins.resolve`.
    """
    cls, cfg = resolve("executor", ref)
    executor = cls(cfg)
    if not isinstance(executor, Executor):
        raise PluginError(f"executor plugin {cls.__module__}.{cls.__qualname__} is not an Executor.")
    return executor
