"""`make_app`: the viewer's own routes, for pictures, heat maps and uploads. Does not import gradio."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from saev_core import BadImageError, SaevError
from saev_core.errors import RunError
from saev_viz.html.feature_page import heat
from saev_viz.run_view.addresses import PREFIX
from saev_viz.run_view.library import Library
from saev_viz.run_view.uploads import MAX_BYTES, refusal


def make_app(library: Library) -> FastAPI:
    """The routes besides gradio's: pictures by number, heat maps and uploads. No client-supplied path reaches the file
    system, which rules out path traversal."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get(f"{PREFIX}/image/{{index}}")
    def image(index: int, px: int = 224, run: int = 0) -> Response:
        runs = [library, *library.others]
        if not 0 <= run < len(runs) or not 0 <= index < len(runs[run].pictures):
            return Response(status_code=404)
        return Response(runs[run].pictures.jpeg(index, px), media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @app.get(f"{PREFIX}/map/{{sae}}/{{feature}}/{{index}}")
    def heat_map(sae: str, feature: int, index: int, colours: str = "inferno", end: str = "percentile") -> Response:
        try:
            drawn = heat(library[sae], feature, index, colours, end)
        except SaevError:
            return Response(status_code=404)
        return Response(drawn, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    @app.post(f"{PREFIX}/upload")
    async def upload(request: Request) -> Response:
        name = Path(unquote(request.headers.get("x-name", ""))[:200]).name or "your picture"
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > MAX_BYTES:
                break
        try:
            key = await run_in_threadpool(library.uploads.add, bytes(data), name)
        except BadImageError as error:
            return JSONResponse({"error": refusal(error)}, status_code=422)
        return JSONResponse({"picture": key})

    @app.get(f"{PREFIX}/upload/{{key}}")
    def uploaded(key: str) -> Response:
        try:
            return Response(library.uploads[key].jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, no-store"})
        except RunError:
            return Response(status_code=404)

    return app
