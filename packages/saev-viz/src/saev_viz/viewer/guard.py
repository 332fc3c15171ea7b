"""`Guard`: authentication, the routes that are served, and security headers. Knows no gradio."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from saev_viz.run_view.addresses import PREFIX

POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self' ws: wss:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
"""No page of the viewer can ask another host for anything; gradio's own scripts need inline and eval."""
_API = r"/gradio_api"
SERVED = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|pwa_icon(/\d+)?)/?"
    r"|/(assets|static|svelte)/[\w./@ -]+"
    rf"|{_API}/(theme\.css|info|startup-events|heartbeat/\w+|upload|upload_progress|reset|cancel|queue/(join|data)|component_server)/?"
    rf"|{_API}/(run/\w+/?|stream/[\w./-]+)|{PREFIX}/[\w.~%-]+(/[\w.~%-]+)*"
)
"""Every route that a page asks for. What is not here is not served, whatever gradio would do with it: its proxy, its
monitoring, its editor, its history."""
_FILE = re.compile(rf"{_API}/file=(.+)", re.DOTALL)
MAX_BODY = 16_000_000
"""Bytes of a call of the page; uploads have a limit of their own."""
_LOCAL = re.compile(rb"(127(\.\d+){3}|localhost|\[::1\]|[\w-]+\.localhost)(:\d+)?", re.IGNORECASE)
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Scope, Any, Any], Awaitable[None]]


class Guard:
    """ASGI middleware around everything: a password where one is set, only routes that a page needs, only this page's own
    calls, no file but those that were uploaded, and headers that keep the page to itself."""

    def __init__(self, app: ASGI, auth: str = "", *, files: Path | None = None, local: bool = False) -> None:
        """
        Args:
            auth: `user:password`; empty: no login.
            files: the one folder whose files may be fetched and named: gradio keeps there what is uploaded.
            local: answer only to names of this machine, so that a page elsewhere cannot have its own name lead here.
        """
        self._app = app
        self._auth = auth.encode()
        self._files = files.resolve() if files is not None else None
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if refused := self._refused(scope, headers):
            await _answer(scope, send, *refused)
            return
        if scope["type"] == "http" and scope["method"] == "POST" and not scope["path"].rstrip("/").endswith("/upload"):
            if (body := await _body(receive)) is None:
                await _answer(scope, send, 413, "That is more than a page sends.")
                return
            if not self._harmless(body):
                await _answer(scope, send, 403, "Only files that were uploaded here can be named.")
                return
            receive = _again(body, receive)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *SECURITY_HEADERS]
            await send(message)

        await self._app(scope, receive, answer)

    def _refused(self, scope: Scope, headers: MutableMapping[bytes, bytes]) -> tuple[int, str] | None:
        """Status and words of a request that is not answered."""
        if self._auth and not self._known(headers.get(b"authorization", b"")):
            return 401, "This viewer asks for a name and a password."
        if self._local and not self._auth and not _LOCAL.fullmatch(headers.get(b"host", b"localhost")):
            return 403, "This viewer answers only to 127.0.0.1 and localhost; to reach it by another name start it with --auth or --host."
        if headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site") and scope.get("method", "GET") != "GET":
            return 403, "Another site's page cannot use this viewer."
        path = str(scope["path"])
        if file := _FILE.fullmatch(path):
            return None if self._ours(file[1]) else (404, "Not Found")
        if not SERVED.fullmatch(path) or ".." in path:
            return 404, "Not Found"
        return None

    def _known(self, header: bytes) -> bool:
        kind, _, given = header.partition(b" ")
        if kind.lower() != b"basic":
            return False
        try:
            return hmac.compare_digest(base64.b64decode(given, validate=True), self._auth)
        except binascii.Error:
            return False

    def _ours(self, path: str) -> bool:
        """Whether a path, followed through every link, is a file in the folder of uploads."""
        if self._files is None or "\0" in path:
            return False
        asked, real = Path(path), Path(os.path.realpath(path))
        return asked.is_absolute() and real.is_relative_to(self._files) and real.is_file()

    def _harmless(self, body: bytes) -> bool:
        """Whether every file that a call names is one that was uploaded: gradio would fetch an address, and copy a path."""
        try:
            call = json.loads(body) if body.strip() else None
        except (ValueError, RecursionError):
            return False
        return all(self._ours(path) for path in _named(call))


def _named(call: Any) -> Iterator[str]:
    """Paths and addresses of the files in a call, however deep: of everything that gradio may take for one."""
    todo = [call]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            if isinstance(part.get("path"), str):
                yield part["path"]
            todo += part.values()
        elif isinstance(part, list):
            todo += part


SECURITY_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


async def _answer(scope: Scope, send: Send, status: int, words: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *SECURITY_HEADERS]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="saev", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": words.encode()})


async def _body(receive: Receive) -> bytes | None:
    """All of a request's body; None where it is too long."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, to be read once more."""
    given = False

    async def once() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once
