"""`RunViewer`: base class of viewer plugins, and lookup of the installed one."""

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
    """Base class of every viewer plugin. Each method is optional; a viewer defines those it offers.

    It is built without arguments, and its module is also imported by other commands: import heavy libraries inside the methods.
    """

    METHODS: ClassVar[tuple[str, ...]] = ("report", "pareto", "serve", "gallery")

    @classmethod
    def offered(cls) -> list[str]:
        """Names of the methods this viewer defines."""
        return [method for method in cls.METHODS if getattr(cls, method) is not getattr(RunViewer, method)]

    def report(self, run: Run) -> Path:
        """Write an illustrated report to `run.report_path` and return that path; the last stage of `saev run`.

        Raises:
            RunError: an artifact of the run is damaged, or the file cannot be written.
        """
        raise NotImplementedError

    def pareto(self, run: Run) -> Path:
        """Write a PNG figure of the Pareto front next to the run's `pareto` result and return its path; used by `saev evaluate`.

        Raises:
            RunError: the run has no `pareto` result, or the file cannot be written.
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
        """Serve the run interactively until interrupted; used by `saev view`.

        Args:
            others: further runs to compare with.
            auth: `user:password`; empty: no login.
            dataset: current location of the images, in the form of `--dataset`; empty: as configured in the run.

        Raises:
            UsageError: `auth` is not `user:password`, or the port is invalid.
            RunError: nothing is indexed yet, or the port is in use.
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
        """Write static pages of selected features to `folder` and return the first page; used by `saev view --export`.

        Args:
            features: features to show, in this order; if empty and there is no query, the viewer chooses.
            query: a search in the syntax of the viewer.
            n: maximum number of features; None: the viewer's default.
            sae: the SAE to show; empty: the viewer's default SAE.
            dataset: as for `serve`.

        Raises:
            RunError: nothing is indexed, a feature does not exist, nothing matches, or the folder contains other files.
        """
        raise NotImplementedError


def find_viewer(method: str) -> RunViewer:
    """An instance of the installed viewer that offers a method of `RunViewer`.

    A viewer that cannot be imported is skipped with a warning if another one offers the method.

    Raises:
        NoViewerError: no viewer is installed, or none offers the method; the message names a package to install.
        PluginError: several viewers offer it, or the only candidate cannot be imported or is not a `RunViewer`.
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
        raise NoViewerError("no viewer is installed; run pip install saev-viz.")
    if not offering:
        names = ", ".join(f"{plugin.name} ({plugin.dist})" for plugin in plugins)
        raise NoViewerError(f"no installed viewer offers `{method}` (installed: {names}); run pip install saev-viz.")
    if len(offering) > 1:
        names = " and ".join(f"{plugin.name} ({plugin.dist})" for plugin, _ in offering)
        raise PluginError(f"several viewers offer `{method}`: {names}; uninstall all but one.")
    for problem in broken:
        log.warning("%s", problem)
    return offering[0][1]()


def viewer_class(plugin: Plugin) -> type[RunViewer]:
    """The class of a viewer plugin.

    Raises:
        PluginError: it cannot be imported, or is not a `RunViewer`.
    """
    cls = plugin.load()
    if not (isinstance(cls, type) and issubclass(cls, RunViewer)):
        raise PluginError(f"viewer plugin {plugin.name!r} ({plugin.target}) is not a class derived from saev_core's RunViewer.")
    return cls


__all__ = ["RunViewer", "find_viewer", "viewer_class"]
