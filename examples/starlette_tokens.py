# ycore in Starlette, for who has a token. Run it:
#     pip install '.[asgi]' starlette 'uvicorn[standard]' && python examples/starlette_tokens.py
# A client: new WebsocketProvider('ws://127.0.0.1:1234/ws', 'my-room', doc,
#                                 { params: { token: 'pen' } })
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from ycore_adapters.asgi import ASGIApp
from ycore_adapters.hooks import Access, Hooks, Refused, Request
from ycore_adapters.stores import FileStore

from ycore import CloseCode

TOKENS = {"pen": Access(data="Ada"), "glasses": Access(data="Bob", read_only=True)}


def authorize(request: Request) -> Access:
    token = request.params.get("token")
    if token is None:
        raise Refused("a token is needed", CloseCode.UNAUTHORIZED)
    if token not in TOKENS:
        raise Refused("this token opens nothing here")
    return TOKENS[token]


documents = ASGIApp(FileStore("data"), hooks=Hooks(authorize=authorize))


async def who_is_here(request: HttpRequest) -> JSONResponse:
    room = documents.driver.hub.rooms.get(request.path_params["room"])
    links = [member.link for member in room.members] if room is not None else []
    return JSONResponse(sorted(link.access.data for link in links if link is not None))


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with documents:  # Starlette does not start what is mounted in it
        yield


routes = [Route("/who/{room:path}", who_is_here), Mount("/ws", documents)]
app = Starlette(routes=routes, lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(app, port=1234)
