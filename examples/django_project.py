# A Django project in one file: HTTP by Django, WebSockets by ycore, for who is logged in. Run it:
#     pip install '.[asgi]' django 'uvicorn[standard]' && python examples/django_project.py
# Then /login?name=ada and, in the same browser, /open/my-room give the token for
#     new WebsocketProvider('ws://127.0.0.1:1234/ws', 'my-room', doc, { params: { token } })
import os

import uvicorn
from django.conf import settings
from django.core import signing
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from ycore_adapters.asgi import ASGIApp
from ycore_adapters.hooks import Access, Hooks, Refused, Request
from ycore_adapters.stores import FileStore

settings.configure(
    SECRET_KEY=os.environ.get("SECRET_KEY", "for development only"),
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",  # needs no database
)
SALT = "ycore"
HOURS = 12  # a client that comes back later than that has to fetch a new token first


def login(request: HttpRequest) -> HttpResponse:
    request.session["user"] = request.GET["name"]  # yours asks for a password
    return HttpResponse("welcome")


def open_room(request: HttpRequest, room: str) -> HttpResponse:
    user = request.session.get("user")
    if user is None:
        return JsonResponse({"error": "log in first"}, status=403)
    return JsonResponse({"token": signing.dumps([user, room], salt=SALT)})


def authorize(request: Request) -> Access:
    try:
        token = request.params.get("token", "")
        user, room = signing.loads(token, salt=SALT, max_age=HOURS * 3600)
    except signing.BadSignature:
        raise Refused("this token is not valid, or no longer") from None
    if room != request.room:
        raise Refused("this token is for another room")
    return Access(data=user)


urlpatterns = [path("login", login), path("open/<path:room>", open_room)]
http = get_asgi_application()
hooks = Hooks(authorize=authorize)
application = ASGIApp(FileStore("data"), prefix="/ws/", hooks=hooks, http=http)

if __name__ == "__main__":
    uvicorn.run(application, port=1234)
