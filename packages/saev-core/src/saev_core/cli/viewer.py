"""`saev view`: the viewer plugin on a run."""

from __future__ import annotations

from collections.abc import Sequence

from saev_core.cli.screen import Screen
from saev_core.errors import PluginError
from saev_core.plugins import find, installed
from saev_core.run import Run


def serve(path: str, *, others: Sequence[str] = (), dataset: str, host: str, port: int, auth: str, debug: bool) -> None:
    """Serve the viewer until it is interrupted.

    Raises:
        PluginError: no viewer is installed.
        RunError: it is not a run, nothing is indexed yet, or the port is taken.
    """
    screen = Screen(as_json=False, debug=debug)
    run, beside = Run.open(path), [Run.open(other) for other in others]
    if "app" not in {plugin.name for plugin in installed("viewer")}:
        raise PluginError("no viewer is installed; pip install saev-viz.")
    find("viewer", "app").load()(run, others=beside, host=host, port=port, auth=auth, dataset=dataset, say=screen.say)
