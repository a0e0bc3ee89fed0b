"""pycrdt-websocket's server under uvicorn, on a port of its choice."""

from __future__ import annotations

import socket

import anyio
import uvicorn
from pycrdt.websocket import ASGIServer, WebsocketServer


async def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    # Without a handler, a room is dead once somebody left while it sent to them.
    async with WebsocketServer(
        auto_clean_rooms=False, exception_handler=lambda exception, log: True
    ) as rooms:
        config = uvicorn.Config(ASGIServer(rooms), ws="wsproto", log_level="critical")
        print(f"ws://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        await uvicorn.Server(config).serve(sockets=[listener])


anyio.run(main)
