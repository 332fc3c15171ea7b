"""`serve`: implements `saev view`. Input errors are reported before gradio is imported."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

import uvicorn

from saev_core import Run
from saev_core.errors import RunError, UsageError
from saev_viz.run_view.library import Library

log = logging.getLogger(__name__)


def serve(
    run: Run,
    *,
    others: Sequence[Run] = (),
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: str = "",
    dataset: str = "",
    say: Callable[[str], None] = log.info,
) -> None:
    """Serve the viewer until it is interrupted.

    Args:
        others: further runs to compare with.

    Raises:
        UsageError: `auth` is not `user:password`, or the port is out of range.
        RunError: nothing is indexed yet, the index is of another checkpoint or format, or the port is taken.
    """
    if auth and not all(auth.partition(":")):
        raise UsageError("--auth must be USER:PASSWORD, both non-empty.")
    if not 0 <= port <= 65535:
        raise UsageError(f"port {port} is out of range; choose one from 1 to 65535, or 0 for any free port.")
    library = Library(run, dataset, others)
    _ = library[library.first]
    try:
        taken = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise RunError(f"port {port} of {host} cannot be used ({error.strerror}); choose another --port.") from None
    # Inherited by every connection: without it, a response body waits 40 ms for the browser to acknowledge the headers.
    taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    local = host in ("127.0.0.1", "localhost", "::1")
    place = f"[{host}]" if ":" in host else host
    if not local:
        say(f"anyone who can reach {place}:{taken.getsockname()[1]} can see this run" + ("" if auth else "; set --auth USER:PASSWORD"))
    # Import late: it takes seconds, and input errors should be reported first.
    with _NoStubs():
        from saev_viz.viewer.app import make_server

    # Open pages hold their connections: do not wait for them on shutdown.
    config = uvicorn.Config(make_server(library, auth=auth, local=local), log_level="warning", timeout_graceful_shutdown=1)
    say(f"viewer: http://{place}:{taken.getsockname()[1]}  (press Ctrl-C to stop)")
    uvicorn.Server(config).run(sockets=[taken])


class _NoStubs(MetaPathFinder):
    """While active, gradio is imported without writing type stubs next to its components.

    Gradio writes them at every import, for editor support; that takes half of the import time, and fails if
    site-packages is read-only.
    """

    def __enter__(self) -> None:
        sys.meta_path.insert(0, self)

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == "gradio.component_meta" else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def without(module: ModuleType) -> None:
            execute(module)
            vars(module)["create_or_modify_pyi"] = lambda *_: None

        vars(spec.loader)["exec_module"] = without
        return spec
