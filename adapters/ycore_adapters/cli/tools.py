"""The tools around stored documents. They need the store for themselves: no server may have it."""

from __future__ import annotations

import json
import math
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from ycore import RemoteProtocolError
from ycore.doc import Doc, Waiting

from .._formats import explained
from .._times import when
from ..stores import RoomCorrupt, Store
from ..stores.tools import (
    Contents,
    compact,
    described,
    exists,
    fill_holes,
    import_update,
    read,
    repair,
)
from ..stores.urls import StoreURL
from ._common import (
    CONTEXT,
    HOLES,
    HOW_TO_FILL,
    counted,
    data_option,
    keep_history_option,
    opened,
    progress,
    quoted,
    run,
)

_STDIO: Final = Path("-")


def _time(value: str) -> float:
    """A time, as ISO 8601 has it or in seconds since 1970."""
    try:
        with suppress(ValueError):
            return datetime.fromtimestamp(float(value)).timestamp()
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(
            f"{value!r} is no time: write 2026-11-23T10:00 (local time), with Z or +01:00 "
            "behind for another zone, or seconds since 1970"
        ) from None


at_option = click.option(
    "--at",
    type=_time,
    metavar="TIME",
    help="As it was then: 2026-11-23T10:00, with Z or +01:00 behind if it is not local time, or "
    "seconds since 1970.",
)
some_rooms = click.argument("rooms", nargs=-1)


async def _names(store: Store, chosen: tuple[str, ...]) -> list[str]:
    return list(chosen) or [room async for room in store.rooms()]


async def _must_exist(store: Store, data: StoreURL, *rooms: str) -> None:
    for room in rooms:
        if not await exists(store, room):
            raise click.ClickException(
                f"there is no room {quoted(room)} in {data}: `ycore rooms` lists those there are"
            )


async def _read(store: Store, room: str, bar: Any, at: float | None = None) -> Contents:
    def show(contents: Contents) -> None:
        bar.show(lambda: f"{quoted(room)}, {contents.updates:,} updates")

    return await read(store, room, at=at, progress=show)


@click.command("rooms", context_settings=CONTEXT)
@data_option
@click.option("-l", "--long", is_flag=True, help="With sizes and times, for which all are read.")
@click.option("--json", "as_json", is_flag=True, help="As lines of JSON; implies --long.")
def list_rooms(data: StoreURL, long: bool, as_json: bool) -> None:
    """List the rooms.

    With --long, the exit code is 3 if there is a room of which something can't be shown, since
    what it builds on is missing.
    """

    async def command() -> None:
        has_holes = False
        async with opened(data, read_only=True) as store:
            names = await _names(store, ())
            if not (long or as_json):
                for room in names:
                    click.echo(quoted(room))
                return
            with progress("Reading", len(names)) as bar:
                for room in names:
                    contents = await _read(store, room, bar)
                    await store.release(room)
                    bar.done()
                    waiting = contents.waiting()
                    has_holes = has_holes or bool(waiting.held)
                    click.echo(_line(room, contents, waiting, as_json))
        if has_holes:
            raise click.exceptions.Exit(HOLES)

    run(command)


def _line(room: str, contents: Contents, waiting: Waiting, as_json: bool) -> str:
    document = contents.document
    size = len(document.encode())
    if as_json:
        return json.dumps(
            {
                "room": room,
                "updates": contents.updates,
                "stored_bytes": contents.bytes,
                "document_bytes": size,
                "authors": len(document.state_vector()),
                "last_update": contents.last,
                "damage": contents.damage,
                "held_back": waiting.held,
                "missing": waiting.missing,
            }
        )
    notes = "  DAMAGED" if contents.damage else ""
    if waiting.held:
        notes += f"  HOLES: {described(waiting)}"
    return (
        f"{contents.updates:>9,} updates {contents.bytes:>13,} bytes, merged {size:>12,}  "
        f"{'never' if contents.last is None else when(contents.last):25}  {quoted(room)}{notes}"
    )


@click.command(context_settings=CONTEXT)
@data_option
@some_rooms
def verify(data: StoreURL, rooms: tuple[str, ...]) -> None:
    """Read all that is stored, or of these ROOMS, and say what can't be.

    The exit code is 1 if something is damaged; otherwise 3 if something can't be shown, since what
    it builds on is missing (it never came, or whatever wrote the room before has lost it).
    """

    async def command() -> None:
        well = damaged = torn = holes = 0
        async with opened(data, read_only=True) as store:
            await _must_exist(store, data, *rooms)
            names = await _names(store, rooms)
            with progress("Verifying", len(names)) as bar:
                for room in names:
                    contents = await _read(store, room, bar)
                    contents.damage += await store.check_history(room)
                    tail = store.problems().get(room)
                    await store.release(room)
                    bar.done()
                    damaged += bool(contents.damage)
                    for problem in contents.damage:
                        click.echo(f"{quoted(room)}: {problem}")
                    waiting = contents.waiting()
                    if waiting.held:
                        click.echo(f"{quoted(room)}: {described(waiting)}. {HOW_TO_FILL}")
                    if tail is not None:
                        click.echo(f"{quoted(room)}: {tail}, and not part of the room")
                    if not contents.damage:
                        holes += bool(waiting.held)
                        torn += tail is not None
                    well += not (contents.damage or waiting.held or tail)
            nameless = [] if rooms else await store.nameless()
            for problem in nameless:
                click.echo(problem)
        damaged += len(nameless)
        with_holes = f", {holes:,} with holes" if holes else ""
        ends = f", {torn:,} end in a write cut short" if torn else ""
        are_well = counted(well, "room is", "rooms are")
        click.echo(f"{are_well} well, {damaged:,} damaged{with_holes}{ends}")
        if damaged or holes:
            raise click.exceptions.Exit(1 if damaged else HOLES)

    run(command)


@click.command("repair", context_settings=CONTEXT)
@data_option
@click.argument("rooms", nargs=-1, required=True)
@click.option("--keep-little", is_flag=True, help="Repair it even if most of it can't be read.")
@click.option(
    "--fill-holes",
    "fill",
    is_flag=True,
    help="Give up on what is missing, so that what builds on it is shown as far as it can be.",
)
def repair_rooms(data: StoreURL, rooms: tuple[str, ...], keep_little: bool, fill: bool) -> None:
    """Make damaged ROOMS usable again, with what can be read of them.

    What was stored is put aside. Clients that have what is missing bring it back when they connect:
    but for what --fill-holes has given up on, which can't come any more. A room of which most would
    be lost is left as it is, and the exit code is 1 then.

    With --fill-holes, the exit code is 3 if something is held back that nothing can bring.
    """

    async def command() -> None:
        left = 0
        has_holes = False
        async with opened(data) as store:
            await _must_exist(store, data, *rooms)
            with progress("Repairing", len(rooms)) as bar:
                for room in rooms:
                    contents = await _read(store, room, bar)
                    if contents.damage:
                        try:
                            where = await repair(store, room, contents, keep_little=keep_little)
                        except RoomCorrupt as exc:
                            left += 1
                            click.echo(str(exc))
                            await store.release(room)
                            bar.done()
                            continue
                        click.echo(
                            f"{quoted(room)}: repaired: {contents.kept_updates:,} updates of "
                            f"{contents.kept:,} bytes are kept, {contents.lost:,} bytes could not "
                            f"be read; as it was, it is in {where}"
                        )
                        contents = await _read(store, room, bar)
                    elif not (fill and contents.waiting().held):
                        click.echo(f"{quoted(room)}: nothing is damaged, left as it is")
                    has_holes |= await _mind_holes(store, room, contents, fill=fill)
                    await store.release(room)
                    bar.done()
        if left or (has_holes and fill):
            raise click.exceptions.Exit(1 if left else HOLES)

    run(command)


async def _mind_holes(store: Store, room: str, contents: Contents, *, fill: bool) -> bool:
    """Fill a room's holes, or say what they are. Returns whether there are still some."""
    waiting = contents.waiting()
    if waiting.held and fill and waiting.missing:
        where = await fill_holes(store, room, waiting)
        click.echo(f"{quoted(room)}: {described(waiting)}. Filled; as it was, it is in {where}")
        waiting = (await read(store, room)).waiting()
    if waiting.held:
        how = "Nothing can bring it" if fill else HOW_TO_FILL
        click.echo(f"{quoted(room)}: {described(waiting)}. {how}")
    return bool(waiting.held)


@click.command("compact", context_settings=CONTEXT)
@data_option
@keep_history_option
@some_rooms
def compact_rooms(data: StoreURL, keep_history: bool, rooms: tuple[str, ...]) -> None:
    """Merge the updates of all rooms, or of these ROOMS, as the server does by itself."""

    async def command() -> None:
        before = after = 0
        async with opened(data, keep_history=keep_history) as store:
            await _must_exist(store, data, *rooms)
            names = await _names(store, rooms)
            with progress("Compacting", len(names)) as bar:
                for room in names:

                    def show(contents: Contents, room: str = room) -> None:
                        bar.show(lambda: f"{quoted(room)}, {contents.updates:,} updates")

                    contents, size = await compact(store, room, show)
                    await store.release(room)
                    bar.done()
                    before += contents.bytes
                    after += size
        those = counted(len(names), "room", "rooms")
        click.echo(f"{those}: {before:,} bytes of updates are {after:,} now")

    run(command)


@click.command(context_settings=CONTEXT)
@data_option
@at_option
@click.option("--text", is_flag=True, help="Only what is written, without names and quotes.")
@click.argument("room")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def show(data: StoreURL, at: float | None, text: bool, room: str, names: tuple[str, ...]) -> None:
    """Show what is in a ROOM, as JSON: all its shared types, or those with these NAMEs.

    What kind a type is the document does not say; it is taken for what it looks like. Bytes are
    shown as {"$bytes": hexadecimal}.

    The exit code is 1 if something is damaged, and 3 if something is missing for other reasons,
    which are told.
    """

    async def command() -> None:
        async with opened(data, read_only=True) as store:
            await _must_exist(store, data, room)
            with progress("Reading", 1) as bar:
                contents = await _read(store, room, bar, at)
        view = Doc.view(contents.document)
        for problem in contents.damage:
            click.echo(f"{quoted(room)}: {problem}", err=True)
        if view.held_back:
            click.echo(f"{quoted(room)}: {described(view.waiting)}", err=True)
        if at is not None and contents.shown_from is not None:
            since = f"what follows is marked with times before {when(at)} too"
            how = f"--at {math.ceil(contents.shown_from)} shows it"
            click.echo(f"{quoted(room)}: the clock was set back: {since}, {how}", err=True)
        for name in names:
            if name not in view.roots:
                there = ", ".join(map(quoted, sorted(view.roots))) or "none"
                raise click.ClickException(f"there is no {quoted(name)} in it, but: {there}")
        shown = view.to_json()
        if text:
            for name in names or shown:
                value = shown[name]
                click.echo(value if isinstance(value, str) else _as_json(value))
        else:
            click.echo(_as_json({name: shown[name] for name in names or shown}))
        if contents.damage:
            raise click.exceptions.Exit(1)
        if view.held_back or contents.shown_from is not None:
            raise click.exceptions.Exit(HOLES)

    run(command)


def _as_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return text.encode("utf-8", "replace").decode()  # halves of pairs of surrogates


@click.command("export", context_settings=CONTEXT)
@data_option
@at_option
@click.argument("room")
@click.argument("file", type=click.Path(path_type=Path), default=_STDIO)
def export_room(data: StoreURL, at: float | None, room: str, file: Path) -> None:
    """Write the document of a ROOM to a FILE (default: standard output), as one Yjs update.

    `Y.applyUpdate(doc, bytes)` reads it in JavaScript, `ycore import` here.
    """
    if file == _STDIO and sys.stdout.isatty():
        raise click.UsageError("an update is binary: name a file for it")

    async def command() -> None:
        async with opened(data, read_only=True) as store:
            await _must_exist(store, data, room)
            with progress("Reading", 1) as bar:
                contents = await _read(store, room, bar, at)
        if contents.damage:
            raise click.ClickException(f"{quoted(room)}: {'; '.join(contents.damage)}")
        update = contents.document.encode()
        try:
            if file == _STDIO:
                sys.stdout.buffer.write(update)
                return
            with file.open("xb") as out:
                out.write(update)
        except FileExistsError:
            raise click.ClickException(f"{file} is there already, and was left as it is") from None
        except OSError as exc:
            raise click.ClickException(f"can't write {file}: {exc.strerror}") from None
        click.echo(f"{quoted(room)}: {len(update):,} bytes written to {file}")

    run(command)


@click.command("import", context_settings=CONTEXT)
@data_option
@click.argument("room")
@click.argument("file", type=click.Path(path_type=Path))
def import_room(data: StoreURL, room: str, file: Path) -> None:
    """Add a FILE with a Yjs update ("-": standard input) to a ROOM, which need not exist yet.

    What the room has stays: the two are merged, as if somebody had come with that document.
    """
    try:
        update = sys.stdin.buffer.read() if file == _STDIO else file.read_bytes()
    except OSError as exc:
        raise click.ClickException(f"can't read {file}: {exc.strerror}") from None

    async def command() -> None:
        async with opened(data, must_exist=False) as store:
            try:
                await import_update(store, room, update)
            except RemoteProtocolError as exc:
                raise click.ClickException(
                    f"{file} holds no Yjs update: {explained(update, exc)}"
                ) from None
        click.echo(f"{quoted(room)}: {len(update):,} bytes added")

    run(command)


@click.command("delete", context_settings=CONTEXT)
@data_option
@click.argument("rooms", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete_rooms(data: StoreURL, rooms: tuple[str, ...], yes: bool) -> None:
    """Delete ROOMS for good, with their history and what was put aside.

    A client that still has the document brings it back when it connects.
    """

    async def command() -> None:
        async with opened(data) as store:
            await _must_exist(store, data, *rooms)
            if not yes:
                names = ", ".join(map(quoted, rooms))
                click.confirm(f"Delete {names} for good?", abort=True, err=True)
            for room in rooms:
                await store.delete(room)
                click.echo(f"{quoted(room)}: deleted")

    run(command)


COMMANDS: Final = (
    list_rooms,
    show,
    verify,
    repair_rooms,
    compact_rooms,
    export_room,
    import_room,
    delete_rooms,
)
