"""ycore in ASGI frameworks, as docs/frameworks.md shows it, under an ASGI server.

python asgi_apps.py SERVER APP --data FOLDER --port PORT
"""
# ruff: noqa: PLC0415 each server is imported alone

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
from ycore_adapters.asgi import ASGIApp
from ycore_adapters.hooks import Access, Hooks, Refused, Request
from ycore_adapters.stores import FileStore

ROOT = Path(__file__).parents[2]


def by_token(request: Request) -> Access:
    match request.params.get("token"):
        case "writer" | None:
            return Access()
        case "reader":
            return Access(read_only=True)
        case _:
            raise Refused("no such token")


def alone(data: str) -> Any:
    async def hello(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"hello"})

    return ASGIApp(FileStore(data), prefix="/ws/", hooks=Hooks(authorize=by_token), http=hello)


SETTINGS = """
SECRET_KEY = "test"
ALLOWED_HOSTS = ["*"]
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
ROOT_URLCONF = "mysite.urls"
"""
URLS = """
from django.http import HttpResponse
from django.urls import path

urlpatterns = [path("hello", lambda request: HttpResponse("hello"))]
"""


def write(folder: Path, heading: str) -> None:
    """Write the files that the page shows under a heading, and those that are there already."""
    page = (ROOT / "docs" / "frameworks.md").read_text()
    [tokens, *_] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    [app] = re.findall(
        rf"^### {heading}\n[^#]*?```python\n(.*?)```", page, re.DOTALL | re.MULTILINE
    )
    (folder / "mysite").mkdir(exist_ok=True)
    for name, source in {
        "tokens.py": tokens,
        "app.py": app,
        "mysite/settings.py": SETTINGS,
        "mysite/urls.py": URLS,
    }.items():
        (folder / name).write_text(source)


def shown(heading: str) -> Callable[[str], Any]:
    """The application on the page, whose data are in a folder "data"."""

    def load(data: str) -> Any:
        folder = Path(data).parent
        write(folder, heading)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        module = importlib.import_module("app")
        return getattr(module, "application", None) or module.app

    return load


def on_uvicorn(app: Any, port: int, ws: Any) -> None:
    import uvicorn

    config = uvicorn.Config(app, port=port, ws=ws, log_level="warning", log_config=None)
    server = uvicorn.Server(config)
    with config.bind_socket() as socket:
        print(f"listening on http://127.0.0.1:{socket.getsockname()[1]}", flush=True)
        server.run([socket])


def on_hypercorn(app: Any, port: int, backend: Any) -> None:
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.graceful_timeout = 0.2
    config.accesslog = None
    if backend == "trio":
        from hypercorn.trio import serve
    else:
        from hypercorn.asyncio import serve

        # Before Python 3.12 asyncio complains of the connections hypercorn cancels when it stops.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    anyio.run(serve, app, config, backend=backend)


HEADINGS = {
    "starlette": "Starlette",
    "fastapi": "FastAPI",
    "litestar": "Litestar",
    "quart": "Quart",
    "django": "Django",
    "channels": "Django with Channels",
}
APPS: dict[str, Callable[[str], Any]] = {"alone": alone} | {
    name: shown(heading) for name, heading in HEADINGS.items()
}
SERVERS: dict[str, tuple[Callable[[Any, int, Any], None], str]] = {
    "uvicorn": (on_uvicorn, "websockets-sansio"),
    "uvicorn-wsproto": (on_uvicorn, "wsproto"),
    "hypercorn": (on_hypercorn, "asyncio"),
    "hypercorn-trio": (on_hypercorn, "trio"),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("server", choices=SERVERS)
    parser.add_argument("app", choices=APPS)
    parser.add_argument("--data")
    parser.add_argument("--port", type=int)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    run, how = SERVERS[args.server]
    run(APPS[args.app](args.data), args.port, how)
