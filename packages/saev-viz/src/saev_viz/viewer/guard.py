"""`Guard`: authentication, the list of served routes, and security headers. Does not import gradio."""

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
"""Blocks requests to other hosts; gradio's own scripts need inline and eval."""
_API = r"/gradio_api"
SERVED = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|pwa_icon(/\d+)?)/?"
    r"|/(assets|static|svelte)/[\w./@ -]+"
    rf"|{_API}/(theme\.css|info|startup-events|heartbeat/\w+|upload|upload_progress|reset|cancel|queue/(join|data)|component_server)/?"
    rf"|{_API}/(run/\w+/?|stream/[\w./-]+)|{PREFIX}/[\w.~%-]+(/[\w.~%-]+)*"
)
"""All routes that a page needs. Others are blocked, including gradio's proxy, monitoring, editor and
history."""
_FILE = re.compile(rf"{_API}/file=(.+)", re.DOTALL)
MAX_BODY = 16_000_000
"""Maximum size of a request body in bytes; uploads have their own limit."""
_LOCAL = re.compile(rb"(127(\.\d+){3}|localhost|\[::1\]|[\w-]+\.localhost)(:\d+)?", re.IGNORECASE)
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Scope, Any, Any], Awaitable[None]]


class Guard:
    """ASGI middleware around the whole application: checks the password if one is set, allows only routes that a page
    needs, same-origin calls and uploaded files, and adds security headers."""

    def __init__(self, app: ASGI, auth: str = "", *, files: Path | None = None, local: bool = False) -> None:
        """
        Args:
            auth: `user:password`; empty: no login.
            files: the only folder whose files may be fetched or named in calls: gradio's upload folder.
            local: accept only local host names, as a protection against DNS rebinding.
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
                await _answer(scope, send, 413, "The request body is too large.")
                return
            if not self._harmless(body):
                await _answer(scope, send, 403, "Only uploaded files can be referenced.")
                return
            receive = _again(body, receive)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *SECURITY_HEADERS]
            await send(message)

        await self._app(scope, receive, answer)

    def _refused(self, scope: Scope, headers: MutableMapping[bytes, bytes]) -> tuple[int, str] | None:
        """Status and message for a rejected request."""
        if self._auth and not self._known(headers.get(b"authorization", b"")):
            return 401, "This viewer requires a user name and password."
        if self._local and not self._auth and not _LOCAL.fullmatch(headers.get(b"host", b"localhost")):
            return 403, "This viewer accepts only 127.0.0.1 and localhost; to use another host name, start it with --auth or --host."
        if headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site") and scope.get("method", "GET") != "GET":
            return 403, "Cross-site requests are not allowed."
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
        """Whether a path, with links resolved, is a file in the upload folder."""
        if self._files is None or "\0" in path:
            return False
        asked, real = Path(path), Path(os.path.realpath(path))
        return asked.is_absolute() and real.is_relative_to(self._files) and real.is_file()

    def _harmless(self, body: bytes) -> bool:
        """Whether a call names only uploaded files: gradio would fetch any URL and copy any path."""
        try:
            call = json.loads(body) if body.strip() else None
        except (ValueError, RecursionError):
            return False
        return all(self._ours(path) for path in _named(call))


def _named(call: Any) -> Iterator[str]:
    """Paths and URLs of the files in a call, at any depth: everything that gradio may treat as one."""
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
    """A request's complete body; None if it is too large."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that replays a body already read."""
    given = False

    async def once() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once
