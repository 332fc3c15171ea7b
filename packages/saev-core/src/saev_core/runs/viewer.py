"""`RunViewer`: base of the plugins that show a finished run, and finding the installed one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from saev_core.errors import NoViewerError, PluginError
from saev_core.plugins.registry import Plugin, installed
from saev_core.runs.run import Run
from saev_core.support.progress import Track, silent

log = logging.getLogger(__name__)


class RunViewer:
    """Base of every viewer plugin. Each method is optional; a viewer defines those that it offers.

    It is built without arguments, and its module is imported by commands that do not view: heavy libraries belong into the methods.
    """

    METHODS: ClassVar[tuple[str, ...]] = ("report", "pareto", "serve", "gallery")

    @classmethod
    def offered(cls) -> list[str]:
        """Names of the methods that this viewer defines."""
        return [method for method in cls.METHODS if getattr(cls, method) is not getattr(RunViewer, method)]

    def report(self, run: Run) -> Path:
        """Write an illustrated report to `run.report_path` and return that path; the last stage of `saev run`.

        Raises:
            RunError: something of the run is damaged, or the file cannot be written.
        """
        raise NotImplementedError

    def pareto(self, run: Run) -> Path:
        """Write a figure of the Pareto front beside the run's `pareto` result, as PNG, and return its path; made by `saev evaluate`.

        Raises:
            RunError: the run has no such result, or the file cannot be written.
        """
        raise NotImplementedError

    def serve(
        self,
        run: Run,
        *,
        others: Sequence[Run] = (),
        host: str = "127.0.0.1",
        port: int = 7860,
        auth: str = "",
        dataset: str = "",
        say: Callable[[str], None] = log.info,
    ) -> None:
        """Serve the run interactively until interrupted: `saev view`.

        Args:
            others: further runs, to compare with.
            auth: `user:password`; empty: no login.
            dataset: where the images lie now, as `--dataset` takes it; empty: where the run says.

        Raises:
            UsageError: `auth` is not `user:password`, or there is no such port.
            RunError: nothing is indexed yet, or the port is taken.
        """
        raise NotImplementedError

    def gallery(
        self,
        run: Run,
        folder: str | Path,
        *,
        features: Sequence[int] = (),
        query: str = "",
        n: int | None = None,
        sae: str = "",
        dataset: str = "",
        say: Callable[[str], None] = log.info,
        track: Track = silent,
    ) -> Path:
        """Write pages of chosen features that need no server into `folder` and return the first page: `saev view --export`.

        Args:
            features: which features, in this order; with none and no query the viewer chooses.
            query: what the viewer's search takes.
            n: how many features at most; None: the viewer's default.
            sae: which SAE; empty: the one that the viewer shows first.
            dataset: as for `serve`.

        Raises:
            RunError: nothing is indexed, there is no such feature, nothing matches, or the folder holds something else.
        """
        raise NotImplementedError


def find_viewer(method: str) -> RunViewer:
    """The installed viewer that offers a method of `RunViewer`, built.

    A viewer that cannot be imported is passed over, with a warning, where another one offers the method.

    Raises:
        NoViewerError: none is installed, or none offers it; says what to install.
        PluginError: several offer it, or the only candidate cannot be imported or is not a `RunViewer`.
    """
    plugins, offering, broken = installed("viewer"), list[tuple[Plugin, type[RunViewer]]](), list[PluginError]()
    for plugin in plugins:
        try:
            cls = viewer_class(plugin)
        except PluginError as error:
            broken.append(error)
            continue
        if method in cls.offered():
            offering.append((plugin, cls))
    if not offering and broken:
        raise broken[0]
    if not plugins:
        raise NoViewerError("no viewer is installed; pip install saev-viz.")
    if not offering:
        names = ", ".join(f"{plugin.name} ({plugin.dist})" for plugin in plugins)
        raise NoViewerError(f"no installed viewer offers `{method}`; there is {names}. pip install saev-viz.")
    if len(offering) > 1:
        names = " and ".join(f"{plugin.name} ({plugin.dist})" for plugin, _ in offering)
        raise PluginError(f"several viewers offer `{method}`: {names}; uninstall all but one.")
    for problem in broken:
        log.warning("%s", problem)
    return offering[0][1]()


def viewer_class(plugin: Plugin) -> type[RunViewer]:
    """The class behind a viewer plugin.

    Raises:
        PluginError: it cannot be imported, or is not a `RunViewer`.
    """
    cls = plugin.load()
    if not (isinstance(cls, type) and issubclass(cls, RunViewer)):
        raise PluginError(f"viewer plugin {plugin.name!r} ({plugin.target}) is not a class derived from saev_core's RunViewer.")
    return cls


__all__ = ["RunViewer", "find_viewer", "viewer_class"]
