"""What several test files share: the command line, and plugins built into real wheels."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import commands
import pytest
from commands import UV, BuildWheel, Saev, Serving


@pytest.fixture(scope="session")
def saev() -> Saev:
    """`commands.saev`."""
    return commands.saev


@pytest.fixture(scope="session")
def build_wheel(tmp_path_factory: pytest.TempPathFactory) -> BuildWheel:
    """Builds a small distribution into a wheel: `build_wheel(name, {group: {plugin: target}}, {file: source})`."""

    def build(name: str, groups: Mapping[str, Mapping[str, str]], files: Mapping[str, str], version: str = "0.1.0") -> Path:
        folder = tmp_path_factory.mktemp(name)
        lines = [
            '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"',
            f'[project]\nname = "{name}"\nversion = "{version}"',
        ]
        for group, entries in groups.items():
            lines.append(f'[project.entry-points."{group}"]')
            lines += [f'{plugin} = "{target}"' for plugin, target in entries.items()]
        lines.append(f"[tool.hatch.build.targets.wheel]\nonly-include = {list(files)}".replace("'", '"'))
        (folder / "pyproject.toml").write_text("\n".join(lines) + "\n")
        for file, source in files.items():
            (folder / file).write_text(textwrap.dedent(source))
        subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=folder, check=True, capture_output=True)
        (wheel,) = (folder / "dist").glob("*.whl")
        return wheel

    return build


@pytest.fixture(scope="session")
def install(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Installs wheels into a new folder, without what they depend on; `saev(..., path=folder)` sees them."""

    def into_folder(*wheels: Path) -> Path:
        folder = tmp_path_factory.mktemp("site")
        command = [UV, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", sys.executable, "--target", folder, *wheels]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
        return folder

    return into_folder


@pytest.fixture(scope="session")
def serving() -> Serving:
    """`with serving(application) as address:` serves an ASGI application on a free port of this machine."""

    @contextmanager
    def served(app: Any) -> Iterator[str]:
        import uvicorn

        taken = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{taken.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
            taken.close()

    return served


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless browser."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-background-networking"])
        yield opened
        opened.close()
