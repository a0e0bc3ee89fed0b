"""ycore in ASGI frameworks, as docs/frameworks.md shows it, under an ASGI server.

python asgi_apps.py SERVER APP --data FOLDER --port PORT
"""
# ruff: noqa: PLC0415 each app imports its own framework only

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
from ycore_adapters.asgi import ASGIApp
from ycore_adapters.hooks import Access, Hooks, Refused, Request
from ycore_adapters.stores import FileStore


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


def starlette(data: str) -> Any:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount, Route

    documents = ASGIApp(FileStore(data), hooks=Hooks(authorize=by_token))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with documents:
            yield

    async def hello(request: object) -> PlainTextResponse:
        return PlainTextResponse("hello")

    routes = [Route("/hello", hello), Mount("/ws", documents)]
    app = Starlette(routes=routes, lifespan=lifespan)
    return app


def fastapi(data: str) -> Any:
    from fastapi import FastAPI

    documents = ASGIApp(FileStore(data), hooks=Hooks(authorize=by_token))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with documents:
            yield

    app = FastAPI(lifespan=lifespan)
    app.mount("/ws", documents)

    @app.get("/hello")
    async def hello() -> str:
        return "hello"

    return app


def litestar(data: str) -> Any:
    from litestar import Litestar, asgi, get
    from litestar.types import Receive, Scope, Send

    documents = ASGIApp(FileStore(data), prefix="/ws/", hooks=Hooks(authorize=by_token))

    @contextlib.asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with documents:
            yield

    @asgi("/ws/{room:path}", copy_scope=True)
    async def ws(scope: Scope, receive: Receive, send: Send) -> None:
        await documents(scope, receive, send)  # type: ignore[arg-type]

    @get("/hello")
    async def hello() -> str:
        return "hello"

    namespace = {"Scope": Scope, "Receive": Receive, "Send": Send}
    app = Litestar([ws, hello], lifespan=[lifespan], signature_namespace=namespace)
    return app


def quart(data: str) -> Any:
    from quart import Quart, websocket

    app = Quart(__name__)

    @app.get("/hello")
    async def hello() -> str:
        return "hello"

    @app.websocket("/echo")
    async def echo() -> None:
        await websocket.send(await websocket.receive())

    hooks = Hooks(authorize=by_token)
    application = ASGIApp(FileStore(data), prefix="/ws/", hooks=hooks, http=app)
    return application


def _django() -> Any:
    import django
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpResponse
    from django.urls import path

    settings.configure(
        SECRET_KEY="test",
        ALLOWED_HOSTS=["*"],
        SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
        ROOT_URLCONF=(path("hello", lambda request: HttpResponse("hello")),),
    )
    django.setup()
    return get_asgi_application()


def django(data: str) -> Any:
    get_asgi_application = _django
    hooks = Hooks(authorize=by_token)
    http = get_asgi_application()
    application = ASGIApp(FileStore(data), prefix="/ws/", hooks=hooks, http=http)
    return application


def channels(data: str) -> Any:
    get_asgi_application = _django
    http = get_asgi_application()  # before what follows is imported

    from channels.routing import ProtocolTypeRouter, URLRouter
    from channels.sessions import SessionMiddlewareStack
    from django.urls import re_path

    documents = ASGIApp(FileStore(data), prefix="/ws/", hooks=Hooks(authorize=by_token))
    application = ProtocolTypeRouter(
        {
            "http": http,
            "websocket": SessionMiddlewareStack(URLRouter([re_path(r"^ws/", documents)])),
            "lifespan": documents,
        }
    )
    return application


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


APPS: dict[str, Callable[[str], Any]] = {
    app.__name__: app for app in (alone, starlette, fastapi, litestar, quart, django, channels)
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
