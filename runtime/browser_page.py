"""The browser page: where its files are, and which of them the service serves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

_HERE = Path(__file__).parent.parent
PAGES = (_HERE / "browser", _HERE / "examples" / "browser")
"""Folders where the browser page may be: in an installed package, and in a checkout."""
WEB_RUNTIME = Path("node_modules", "onnxruntime-web", "dist")
"""onnxruntime-web, below the page's folder. ``npm ci`` installs it; without it the page scores through this service."""
_FILES_OF_THE_PAGE = (".html", ".css", ".js", ".svg")


def find_page() -> Path:
    """The folder of the browser page that comes with this package."""
    return next(folder for folder in PAGES if os.path.isfile(folder / "index.html"))


def add_page(app: FastAPI, folder: Path) -> None:
    """Serve the page's own files and onnxruntime-web below it, and nothing else that may be in the folder."""

    def serve(path: Path) -> Any:
        async def file() -> FileResponse:
            return FileResponse(path)

        return file

    for path in sorted(folder.iterdir()):
        if path.suffix in _FILES_OF_THE_PAGE:
            app.add_api_route(f"/{path.name}", serve(path), include_in_schema=False, methods=["GET", "HEAD"])
    app.add_api_route("/", serve(folder / "index.html"), include_in_schema=False, methods=["GET", "HEAD"])
    if os.path.isdir(folder / WEB_RUNTIME):
        app.mount(f"/{WEB_RUNTIME.as_posix()}", StaticFiles(directory=folder / WEB_RUNTIME))
