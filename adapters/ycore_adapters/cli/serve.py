"""`ycore serve`: the server as a command."""

from __future__ import annotations

import errno
import importlib.util
import logging
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, Literal, get_args

import anyio
import anyio.abc
import click
from click.core import ParameterSource

from ycore import Settings

from .._files import enough_for, raise_limit
from ..driver import Driver, DriverSettings
from ..hooks import Access, Hooks
from ..server import Server, ServerSettings, listen_tcp, listen_unix
from ..stores import FileStore, Fsync, SQLiteStore, Store, StoreError
from ..stores.urls import StoreURL
from ._common import CONTEXT, data_option, flag, keep_history_option, store_at

_DEFAULTS = ServerSettings()
_ROOMS = Settings()


@click.command(context_settings=CONTEXT)
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for all.")
@click.option(
    "--port", default=1234, type=click.IntRange(0, 65535), help="Port to listen on; 0 for any."
)
@click.option("--unix", type=click.Path(path_type=Path), help="Listen on this Unix socket instead.")
@data_option
@click.option("--memory", is_flag=True, help="Keep the documents in memory only.")
@click.option(
    "--fsync",
    default="everysec",
    type=click.Choice(get_args(Fsync)),
    help="When edits are safe from the machine losing power: before anyone else sees them, within "
    "about two seconds, or when the system likes. They always survive the server being killed.",
)
@keep_history_option
@click.option(
    "--open-damaged",
    is_flag=True,
    help="Open a room of which not all can be read any more with what can, for reading only. "
    "Otherwise nobody gets in before `ycore repair`.",
)
@click.option(
    "--acknowledge",
    is_flag=True,
    help="Send authors their own edits back once they are stored: the sync status of y-websocket 4 "
    "is green then. It costs a frame an edit.",
)
@click.option("--read-only", is_flag=True, help="Let nobody edit.")
@click.option(
    "--origin",
    "origins",
    multiple=True,
    help="Let only pages of this origin connect, such as https://example.org. May be given several "
    "times. Clients that are no browsers name none, and are not stopped by this.",
)
@click.option(
    "--idle-timeout",
    default=_ROOMS.idle_timeout,
    type=click.FloatRange(0),
    help="Seconds a room without members stays in memory.",
)
@click.option("--prefix", default="/", help="What URL paths begin with; the rest names the room.")
@click.option(
    "--max-connections",
    type=click.IntRange(1),
    show_default=f"{_DEFAULTS.max_connections}, or 3/8 of the open files allowed",
    help="How many connections there may be in all.",
)
@click.option(
    "--max-connections-per-address",
    type=click.IntRange(1),
    show_default=f"{_DEFAULTS.max_connections_per_address}, or a quarter of --max-connections",
    help="How many may come from one address. Behind a proxy all do: set it as high as the other.",
)
@click.option(
    "--max-rooms",
    type=click.IntRange(1),
    show_default=f"{_ROOMS.max_rooms}, or 3/8 of the open files allowed",
    help="How many rooms may be in memory at once.",
)
@click.option(
    "--max-members",
    default=_ROOMS.max_members,
    type=click.IntRange(1),
    help="How many members one room may have.",
)
@click.option(
    "--max-document-mb",
    default=_ROOMS.max_document_bytes // 2**20,
    type=click.IntRange(1),
    help="How much memory one document may take, about.",
)
@click.option(
    "--max-message-mb",
    default=_DEFAULTS.max_message_bytes // 2**20,
    type=click.IntRange(1),
    help="How long one message may be: as long as a whole document.",
)
@click.option(
    "--compression",
    is_flag=True,
    help="Compress large messages for clients that can read it: slow links gain, the CPU pays.",
)
@click.option(
    "--backend",
    default="asyncio",
    type=click.Choice(["asyncio", "trio"]),
    help="Event loop. asyncio uses uvloop where it is installed.",
)
@click.option(
    "--log-level",
    default="warning",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="What to log, to standard error.",
)
def serve(
    host: str,
    port: int,
    unix: Path | None,
    data: StoreURL,
    memory: bool,
    fsync: Fsync,
    keep_history: bool,
    open_damaged: bool,
    acknowledge: bool,
    read_only: bool,
    origins: Sequence[str],
    idle_timeout: float,
    prefix: str,
    max_connections: int | None,
    max_connections_per_address: int | None,
    max_rooms: int | None,
    max_members: int,
    max_document_mb: int,
    max_message_mb: int,
    compression: bool,
    backend: Literal["asyncio", "trio"],
    log_level: str,
) -> None:
    """Serve documents to Yjs clients over WebSocket.

    A client of y-websocket connects to ws://HOST:PORT with any room name. Ctrl-C or SIGTERM stores
    what was accepted, sends everyone away, and exits; a second one has it wait for nobody.

    Each option may be given in the environment as well: YCORE_PORT=4321 is --port 4321.
    """
    _check_none_is_void(click.get_current_context())
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    raise_limit()
    connections = max_connections or min(_DEFAULTS.max_connections, enough_for())
    try:
        settings = ServerSettings(
            prefix=prefix,
            max_connections=connections,
            max_connections_per_address=max_connections_per_address
            or min(_DEFAULTS.max_connections_per_address, (connections + 3) // 4),
            max_message_bytes=max_message_mb * 2**20,
            compression=compression,
        )
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--prefix") from None
    if memory:
        data = StoreURL.of("memory:")
    store = store_at(data, fsync=fsync, keep_history=keep_history)
    rooms = Settings(
        max_rooms=max_rooms or _ROOMS.max_rooms,
        max_members=max_members,
        max_document_bytes=max_document_mb * 2**20,
        idle_timeout=idle_timeout,
        acknowledge=acknowledge,
    )
    try:
        limits = DriverSettings(
            open_damaged=open_damaged, allowed_origins=frozenset(origins) if origins else None
        )
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--origin") from None
    hooks = Hooks(authorize=(lambda request: Access(read_only=True)) if read_only else None)
    options: dict[str, Any] = {}
    if backend == "trio" and importlib.util.find_spec("trio") is None:
        raise click.ClickException("--backend trio needs trio: pip install trio")
    if backend == "asyncio":
        options["use_uvloop"] = importlib.util.find_spec("uvloop") is not None
    anyio.run(
        _serve_until_signalled,
        store,
        _where(data, store),
        host,
        port,
        unix,
        settings,
        rooms,
        limits,
        hooks,
        backend=backend,
        backend_options=options,
    )


def _where(data: StoreURL, store: Store) -> str:
    if data.scheme == "memory":
        return "memory only"
    if data.path is not None and isinstance(store, FileStore | SQLiteStore):
        return f"{data.path.absolute()} (fsync {store.fsync})"
    return str(data)


_VOID_WITH: Final = {
    "memory": ("data", "fsync", "keep_history", "open_damaged"),
    "unix": ("host", "port"),
}


def _check_none_is_void(context: click.Context) -> None:
    """Refuse an option that has no effect because of another one: somebody counts on it. In the
    environment there may be both, since it is set for more than one command.

    Raises:
        click.UsageError: there is such an option on the command line.
    """
    for option, void in _VOID_WITH.items():
        for name in void:
            given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
            if given and context.params[option]:
                raise click.UsageError(
                    f"{flag(name)} has no effect with {flag(option)}: leave one out"
                )


async def _serve_until_signalled(*how: Any) -> None:
    failed: click.ClickException | None = None
    running: list[Server] = []
    # Signals are received from before the store is opened until after it is closed, so that none
    # ends the process in between.
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_stop_on_signal, signals, running, tasks.cancel_scope)
            try:
                await _serve(running, *how)
            except click.ClickException as exc:  # raised below, as it is and not in a group
                failed = exc
            tasks.cancel_scope.cancel()
    if failed is not None:
        raise failed


async def _serve(
    running: list[Server],
    store: Store,
    where: str,
    host: str,
    port: int,
    unix: Path | None,
    settings: ServerSettings,
    rooms: Settings,
    limits: DriverSettings,
    hooks: Hooks,
) -> None:
    """Serve, and add the server to those `running` once it can be stopped."""
    async with AsyncExitStack() as stack:
        try:
            listeners = await _listen(host, port, unix, settings.backlog)
        except OSError as exc:
            place = f"{host}:{port}" if unix is None else str(unix)
            raise click.ClickException(f"can't listen on {place}: {_explain(exc)}") from None
        for listener in listeners:
            stack.callback(listener.close)
        if unix is not None:
            stack.callback(unix.unlink, missing_ok=True)
        try:
            await stack.enter_async_context(store)
        except StoreError as exc:
            raise click.ClickException(str(exc)) from None
        driver = await stack.enter_async_context(
            Driver(store, settings=rooms, limits=limits, hooks=hooks)
        )
        server = Server(driver, listeners, settings=settings)
        running.append(server)
        urls = ", ".join(_url(listener, settings.prefix) for listener in listeners)
        click.echo(f"ycore serving on {urls}, storing in {where}")
        await server.serve()


async def _listen(host: str, port: int, unix: Path | None, backlog: int) -> Sequence[socket.socket]:
    if unix is not None:
        return [await listen_unix(unix, backlog=backlog)]
    return await listen_tcp(host, port, backlog=backlog)


async def _stop_on_signal(
    signals: AsyncIterator[signal.Signals], running: Sequence[Server], starting: anyio.CancelScope
) -> None:
    """The first signal stops the server, or cancels what comes before it runs; further ones have
    the server hurry."""
    hurry = False
    async for _ in signals:
        if running:
            running[0].stop(hurry=hurry)
        else:
            starting.cancel()
        hurry = True


def _explain(exc: OSError) -> str:
    if exc.errno == errno.EADDRINUSE:
        return "it is in use by another process"
    return exc.strerror or str(exc)


def _url(listener: socket.socket, prefix: str) -> str:
    address = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"ws+unix:{address}"
    host = f"[{address[0]}]" if listener.family == socket.AF_INET6 else address[0]
    return f"ws://{host}:{address[1]}{prefix.rstrip('/')}"
