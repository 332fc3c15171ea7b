"""`Viz`: the viewer plugin that this package registers. Imports neither gradio nor torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from saev_core import Run, RunViewer
from saev_core.support.progress import Track, silent

log = logging.getLogger(__name__)


class Viz(RunViewer):
    """The report, the figure of the Pareto front, the interactive viewer and the gallery."""

    def report(self, run: Run) -> Path:
        """See `saev_viz.report.write.write_report`."""
        from saev_viz.report.write import write_report

        return write_report(run)

    def pareto(self, run: Run) -> Path:
        """See `saev_viz.html.pareto.write_pareto`."""
        from saev_viz.html.pareto import write_pareto

        return write_pareto(run)

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
        """See `saev_viz.viewer.serve.serve`."""
        from saev_viz.viewer.serve import serve

        serve(run, others=others, host=host, port=port, auth=auth, dataset=dataset, say=say)

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
        """See `saev_viz.export.gallery.export`."""
        from saev_viz.export.gallery import export

        return export(run, folder, features=features, query=query, n=n, sae=sae, dataset=dataset, say=say, track=track)


__all__ = ["Viz"]
