"""pycrdt-websocket under uvicorn, as both come, in memory: python pycrdt_server.py PORT"""

import asyncio
import sys

import uvicorn
from pycrdt.websocket import ASGIServer, WebsocketServer


async def main() -> None:
    async with WebsocketServer() as rooms:
        app = ASGIServer(rooms)
        port = int(sys.argv[1])
        config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning")
        await uvicorn.Server(config).serve()


if __name__ == "__main__":
    # What `uvicorn` does by itself where uvloop is installed.
    uvicorn_loop = uvicorn.Config(app="", loop="auto").get_loop_factory()
    with asyncio.Runner(loop_factory=uvicorn_loop) as runner:
        runner.run(main())
