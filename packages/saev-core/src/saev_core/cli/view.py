"""`saev view`: run the viewer plugin on a run."""

from __future__ import annotations

import re
from collections.abc import Sequence

from saev_core.cli.console import Screen
from saev_core.errors import UsageError
from saev_core.runs.run import Run
from saev_core.runs.viewer import find_viewer

MOST = 100_000
"""Largest number of features in one range of --features."""


def serve(path: str, *, others: Sequence[str] = (), dataset: str, host: str, port: int, auth: str, debug: bool) -> None:
    """Serve the viewer until it is interrupted.

    Raises:
        NoViewerError: no viewer is installed, or none that can do this.
        RunError: it is not a run, nothing is indexed yet, or the port is in use.
    """
    screen = Screen(as_json=False, debug=debug)
    run, beside = Run.open(path), [Run.open(other) for other in others]
    find_viewer("serve").serve(run, others=beside, host=host, port=port, auth=auth, dataset=dataset, say=screen.say)


def export_gallery(path: str, folder: str, *, features: str, query: str, n: int | None, sae: str, dataset: str, debug: bool) -> None:
    """Write a gallery of features into a folder.

    Args:
        features: such as `1,2,30-34`.

    Raises:
        NoViewerError: no viewer is installed, or none that can do this.
        UsageError: `features` has another form.
        RunError: it is not a run, nothing is indexed yet, no feature is selected, or the folder holds something else.
    """
    screen = Screen(as_json=False, debug=debug)
    run = Run.open(path)
    viewer, asked = find_viewer("gallery"), numbers(features)
    viewer.gallery(run, folder, features=asked, query=query, n=n, sae=sae, dataset=dataset, say=screen.say, track=screen.track)


def numbers(text: str) -> list[int]:
    """Parse `1,2,30-34`; an empty text gives an empty list.

    Raises:
        UsageError: the text has another form.
    """
    found: list[int] = []
    for piece in text.replace(" ", "").split(",") if text.strip() else ():
        if not (ends := re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", piece)):
            raise UsageError(f"--features takes numbers such as 1,2,30-34, not {piece!r}.")
        low, high = int(ends[1]), int(ends[2] or ends[1])
        if not low <= high < low + MOST:
            raise UsageError(f"--features {piece}: a range goes from the lower to the higher number, with at most {MOST:,} features.")
        found += range(low, high + 1)
    return found
