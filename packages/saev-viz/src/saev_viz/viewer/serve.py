"""`serve`: what `saev view` does. Everything that can be wrong is told before gradio is imported."""

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
        others: further runs, to compare with.

    Raises:
        UsageError: `auth` is not `user:password`, or there is no such port.
        RunError: nothing is indexed yet, the index is of another checkpoint or format, or the port is taken.
    """
    if auth and not all(auth.partition(":")):
        raise UsageError("--auth takes USER:PASSWORD, both not empty.")
    if not 0 <= port <= 65535:
        raise UsageError(f"there is no port {port}; choose one from 1 to 65535, or 0 for any that is free.")
    library = Library(run, dataset, others)
    _ = library[library.first]
    try:
        taken = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise RunError(f"port {port} of {host} cannot be used ({error.strerror}); choose another --port.") from None
    # Every connection inherits it: without it the body of an answer waits 40 ms for the browser to confirm its headers.
    taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    local = host in ("127.0.0.1", "localhost", "::1")
    place = f"[{host}]" if ":" in host else host
    if not local:
        say(f"anyone who reaches {place}:{taken.getsockname()[1]} can see this run" + ("" if auth else "; set --auth USER:PASSWORD"))
    # Only now: it takes seconds to import, and whoever mistyped something need not wait for them.
    with _NoStubs():
        from saev_viz.viewer.app import make_server

    # Pages hold a connection open for as long as they live: at the end nobody waits for them.
    config = uvicorn.Config(make_server(library, auth=auth, local=local), log_level="warning", timeout_graceful_shutdown=1)
    say(f"viewer: http://{place}:{taken.getsockname()[1]}  (Ctrl-C ends it)")
    uvicorn.Server(config).run(sockets=[taken])


class _NoStubs(MetaPathFinder):
    """While it is entered, gradio is imported without writing type stubs of its components beside them.

    It does so at every import, for the editor of who writes an application; that is half of the time the import takes, and
    fails where the packages are not ours to write to.
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
