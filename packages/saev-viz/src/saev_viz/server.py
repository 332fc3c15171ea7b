"""The viewer's own routes, its login and its manners: what is served, to whom, and nothing else. Knows no gradio."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import FastAPI, Response

from saev_viz.library import Library

PREFIX = "/saev"
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self' ws: wss:; worker-src 'self' blob:; frame-ancestors 'self'"
)
"""No page of the viewer can ask another host for anything; gradio's own scripts need inline and eval."""

Scope = MutableMapping[str, Any]
ASGI = Callable[[Scope, Any, Any], Awaitable[None]]


def make_app(library: Library) -> FastAPI:
    """The routes beside gradio's: pictures by number. A path never reaches the file system, so none can lead astray."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get(f"{PREFIX}/image/{{index}}")
    def image(index: int, px: int = 224, run: int = 0) -> Response:
        runs = [library, *library.others]
        if not 0 <= run < len(runs) or not 0 <= index < len(runs[run].pictures):
            return Response(status_code=404)
        return Response(runs[run].pictures.jpeg(index, px), media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    return app


class Guard:
    """ASGI middleware: a password before everything, where one is set, and headers that keep the page to itself."""

    def __init__(self, app: ASGI, auth: str = "") -> None:
        """
        Args:
            auth: `user:password`; empty: no login.
        """
        self._app = app
        self._auth = auth.encode()

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if self._auth and not self._known(dict(scope["headers"]).get(b"authorization", b"")):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            headers = [(b"www-authenticate", b'Basic realm="saev", charset="UTF-8"'), (b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b"This viewer asks for a name and a password."})
            return

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self._app(scope, receive, answer)

    def _known(self, header: bytes) -> bool:
        kind, _, given = header.partition(b" ")
        if kind.lower() != b"basic":
            return False
        try:
            return hmac.compare_digest(base64.b64decode(given, validate=True), self._auth)
        except binascii.Error:
            return False
