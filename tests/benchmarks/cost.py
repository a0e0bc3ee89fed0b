"""What a message costs, and where: `make bench-cost`.

Measures our server under the load generator of `peers.py` while one thing grows: members, the size
of a message, rooms, the document. Fits a model to that, and writes both, with a plot, into
`docs/performance.md` and `docs/performance.svg`. All costs are microseconds of the server's CPU
time for one update, with the file store, `everysec`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from math import floor, log10
from typing import Final, NamedTuple

import anyio
from made import keystrokes, masked, open_peer, room_of
from peers import (
    PEERS,
    RESULTS,
    ROOT,
    Load,
    cpu_per_join,
    document,
    measure,
    measure_floor,
    number,
    progress,
    said,
    serving,
    write_between,
)
from ycore_adapters.server import _framed
from ycore_adapters.stores import FileStore, StoredUpdate

from ycore import Frame
from ycore.messages import Update

DOCS: Final = ROOT / "docs" / "performance.md"
PLOT: Final = ROOT / "docs" / "performance.svg"
KEPT: Final = RESULTS.parent / "cost"
HEAD: Final = 24
"""Bytes of an update that inserts one character behind the last one, less the character."""


class Point(NamedTuple):
    """One measurement: an update of so many bytes, to so many members."""

    what: str
    members: int
    size: int
    cost: float


def settled(members: int) -> float:
    """Updates a second that leave the server most of its time."""
    return min(200, 10_000 / members)


class Bench:
    """Our server, and how long to look at it."""

    def __init__(self, rounds: int, seconds: float) -> None:
        self.rounds = rounds
        self.seconds = seconds

    def result(
        self,
        name: str,
        figure: Callable[[dict[str, float]], float],
        characters: int = 0,
        **options: float,
    ) -> float:
        """The median of a figure over the rounds, in a server of their own."""
        load = Load(name=name, options=options, characters=characters)
        found = []
        with ExitStack() as stack:
            server = stack.enter_context(serving(PEERS[0]))
            for number in range(-1, self.rounds):  # the first warms up
                progress(f"{name}: round {max(number, 0) + 1} of {self.rounds}")
                found.append(figure(measure(load, server, self.seconds)))
        progress("")
        return statistics.median(found[1:])

    def update(self, name: str, characters: int = 0, **options: float) -> float:
        return self.result(name, per_update, characters, **options)


def per_update(result: dict[str, float]) -> float:
    return result["server_cpu"] / result["sent"] * 1e6


# ---- the model


def fit(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """The factors that give the values from the rows, by least squares of the relative error."""
    scaled = [[x / value for x in row] for row, value in zip(rows, values, strict=True)]
    size = len(rows[0])
    # The normal equations, solved by Gauss and Jordan; the right side is the last column.
    table = [
        [sum(row[i] * row[j] for row in scaled) for j in range(size)] + [sum(r[i] for r in scaled)]
        for i in range(size)
    ]
    for i in range(size):
        table[i] = [x / table[i][i] for x in table[i]]
        for k in range(size):
            if k != i:
                table[k] = [a - table[k][i] * b for a, b in zip(table[k], table[i], strict=True)]
    return [row[-1] for row in table]


class Model(NamedTuple):
    """cost = turn + member * members + byte * bytes + member_byte * members * bytes"""

    turn: float
    member: float
    byte: float = 0.0
    member_byte: float = 0.0

    def cost(self, point: Point) -> float:
        each = self.member + self.member_byte * point.size
        return self.turn + each * point.members + self.byte * point.size


# ---- the parts of a message


def median_of(do: Callable[[], object], count: int) -> float:
    """Microseconds for one of the `count` things that `do` does."""
    times = []
    for _ in range(15):
        began = time.perf_counter()
        do()
        times.append((time.perf_counter() - began) / count * 1e6)
    return statistics.median(times)


async def parts() -> dict[str, float]:
    """What is done for a keystroke, each by itself, with all of it in the CPU's caches."""
    count = 1000
    updates = keystrokes(15 * count)
    messages = [Update(data).encode() for data in updates[:count]]
    frames = masked(messages)

    def read() -> None:
        peer = open_peer()
        for data in frames:
            peer.receive(data)

    room = room_of(50)
    author = room.members[0]
    fresh = iter(Update(data).encode() for data in updates)

    def take() -> None:
        for _ in range(count):
            room.receive(author, Frame(next(fresh)), now=0)

    def frame() -> None:
        for message in messages:
            _framed((message,), None)

    found = {"read its frame": median_of(read, count)}
    found["check, add, make effects (`Room.receive`)"] = median_of(take, count)
    found["frame it for all"] = median_of(frame, count)
    with tempfile.TemporaryDirectory(dir=RESULTS) as directory:
        async with FileStore(directory) as store:
            await store.append("r", [StoredUpdate(updates[0], 0)])
            records = [StoredUpdate(data, time.time()) for data in updates[:count]]

            def append() -> None:
                for record in records:
                    store.append_now("r", [record])

            def append_together() -> None:
                for i in range(0, count, 50):
                    store.append_now("r", records[i : i + 50])

            found["append it to the log"] = median_of(append, count)
            found["the same, 50 together"] = median_of(append_together, count)
    return found


# ---- what is shown


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| --- " + "| ---: " * (len(head) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def fitted(points: Sequence[Point], model: Model) -> str:
    return table(
        ("", "measured", "model", "off by"),
        (
            (p.what, number(p.cost), number(model.cost(p)), f"{model.cost(p) / p.cost - 1:+.0%}")
            for p in points
        ),
    )


Series = tuple[str, str, list[tuple[float, float]], list[tuple[float, float]]]
"""Name, CSS class, points, line."""


def plot(series: Sequence[Series], bottom: float) -> str:
    """Deliveries a CPU second over members, both logarithmic, as SVG."""
    width, height, left, base = 640, 400, 80, 340
    tops = [y for *_, points, line in series for _, y in points + line]
    low, high = floor(log10(bottom)), log10(max(tops)) + 0.1

    def x(value: float) -> float:
        return left + (width - left - 20) * log10(value) / 3

    def y(value: float) -> float:
        return base - (base - 20) * (log10(value) - low) / (high - low)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        "<style>text{fill:#555}.g{stroke:#8884}.a{stroke:#0969da;fill:#0969da}"
        ".b{stroke:#d1242f;fill:#d1242f}.c{stroke:#888;fill:#888}path{fill:none;stroke-width:1.5}"
        "@media(prefers-color-scheme:dark){text{fill:#bbb}.a{stroke:#58a6ff;fill:#58a6ff}"
        ".b{stroke:#ff7b72;fill:#ff7b72}}path{fill:none!important}</style>",
    ]
    for decade in range(4):
        at = x(10**decade)
        out.append(f'<line class="g" x1="{at:.0f}" y1="20" x2="{at:.0f}" y2="{base}"/>')
        out.append(f'<text x="{at:.0f}" y="{base + 18}" text-anchor="middle">{10**decade:,}</text>')
    for decade in range(low, floor(high) + 1):
        at = y(10**decade)
        out.append(f'<line class="g" x1="{left}" y1="{at:.0f}" x2="{width - 20}" y2="{at:.0f}"/>')
        out.append(f'<text x="{left - 8}" y="{at + 4:.0f}" text-anchor="end">{10**decade:,}</text>')
    middle = 'text-anchor="middle"'
    below = f'x="{(left + width) / 2}" y="{base + 40}" {middle}'
    out.append(f"<text {below}>members an update is sent to</text>")
    beside = f'transform="translate(16,180) rotate(-90)" {middle}'
    out.append(f"<text {beside}>deliveries per second of server CPU</text>")
    for i, (name, style, points, line) in enumerate(series):
        path = "M" + "L".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line)
        out.append(f'<path class="{style}" d="{path}"/>')
        out += [
            f'<circle class="{style}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3"/>' for a, b in points
        ]
        at = 36 + 18 * i
        out.append(f'<circle class="{style}" cx="{left + 16}" cy="{at - 4}" r="4"/>')
        out.append(f'<text x="{left + 28}" y="{at}">{name}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round")
    arguments = parser.parse_args()
    for directory in (RESULTS, KEPT):
        directory.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.rounds, arguments.seconds)

    calm = []
    for members in (1, 2, 9, 29, 99, 299, 999):
        options = {"rooms": 1, "clients": members + 1, "rate": settled(members)}
        name = f"{members:,} member{'s' * (members > 1)}"
        calm.append(Point(name, members, HEAD + 1, bench.update(f"calm, {name}", **options)))
    for size in (1000, 10_000, 100_000):
        for members in (1, 9):
            rate = settled(members) if size < 100_000 else 20
            options = {"clients": members + 1, "rate": rate, "size": size}
            name = f"{members} member{'s' * (members > 1)}, {size:,} bytes"
            calm.append(Point(name, members, HEAD + size, bench.update(f"calm, {name}", **options)))
    rows = [(1, p.members, p.size, p.members * p.size) for p in calm]
    calm_model = Model(*fit(rows, [p.cost for p in calm]))

    busy = []
    for members in (1, 2, 9, 29, 99, 299):
        options = {"clients": members + 1, "writers": 2, "in-flight": 4}
        name = f"{members:,} member{'s' * (members > 1)}"
        busy.append(Point(name, members, HEAD + 1, bench.update(f"busy, {name}", **options)))
    busy_model = Model(*fit([(1, p.members) for p in busy], [p.cost for p in busy]))

    often = [
        (f"{rate:,}", bench.update(f"{rate:,} a second", rooms=20, clients=3, rate=rate))
        for rate in (25, 100, 400, 1600, 6400)
    ]
    crowd = bench.update("100 rooms of 10", rooms=100, clients=10, rate=2000)
    others = [
        (
            f"{rooms:,} room{'s' * (rooms > 1)} of 3, 300 updates a second in all",
            bench.update(f"{rooms} rooms", rooms=rooms, clients=3, rate=300),
        )
        for rooms in (1, 10, 100, 300)
    ] + [
        (
            f"1 room of 10, 100 updates a second, {what}",
            bench.update(f"document of {what}", characters, clients=10, rate=100),
        )
        for what, characters in (("empty document", 0), ("document of 5 MB", 33))
    ]
    joins = [
        (
            what,
            megabytes,
            bench.result(
                f"joins, {what}",
                cpu_per_join,
                characters,
                clients=2,
                writers=0,
                joiners=20,
                **{"at-once": 1},
            ),
        )
        for what, megabytes, characters in (
            ("100,000 edits by 20 authors", document(1).stat().st_size / 1e6, 1),
            ("the same of 33 characters each", document(33).stat().st_size / 1e6, 33),
        )
    ]
    bare = measure_floor(Load(name="", options={"clients": 100, "rate": 200}), arguments.seconds)
    write = 1e6 / bare["deliveries_per_cpu_second"]
    inside = anyio.run(parts)

    calm_law = (
        f"    {calm_model.turn:.0f} + {calm_model.member:.1f} x members"
        f" + {calm_model.byte * 1000:.1f} x KB + {calm_model.member_byte * 1000:.2f} x members x KB"
    )
    busy_law = f"    {busy_model.turn:.0f} + {busy_model.member:.2f} x members"
    many = f"{700_000 / (5 * crowd):,.0f}"
    text = "\n\n".join(
        [
            "**A calm room**: every update comes alone. Its cost in microseconds is about",
            calm_law,
            fitted(calm, calm_model),
            "**A busy room**: two members write as fast as all others receive, 4 updates in flight"
            " each, so that several leave in one write:",
            busy_law,
            fitted(busy, busy_model),
            "**What matters most in a calm server** is how often something comes: between two"
            " updates it sleeps, and then finds its code and data in no cache. 20 rooms of 3, so"
            " that each update is sent to 2:",
            table(
                ("updates a second in all", "us"), ((what, number(cost)) for what, cost in often)
            ),
            "**What does not matter much**: how many rooms the updates are for, and how long the"
            " document is:",
            table(("", "us"), ((what, number(cost)) for what, cost in others)),
            "**Joining**, connection, handshake and the whole document included:",
            table(("", "MB", "ms"), ((what, f"{mb:.1f}", number(ms)) for what, mb, ms in joins)),
            "**Where it goes**, for a keystroke, each part by itself and warm:",
            table(
                ("", "us"),
                [(what, f"{cost:.1f}") for what, cost in inside.items()]
                + [("a write to a socket, by a bare C loop at 200 turns a second", f"{write:.1f}")],
            ),
            f"**What one core carries**: in 100 rooms of 10, with 2,000 updates a second in all,"
            f" one costs {crowd:.0f} us. At 5 keystrokes a second each, {many} people who all type"
            " at the same time take 70 % of a core.",
        ]
    )
    print(text)
    write_between(DOCS, "cost", text)
    scale = [10 ** (i / 20) for i in range(61)]
    PLOT.write_text(
        plot(
            [
                (
                    name,
                    style,
                    [(p.members, p.members / p.cost * 1e6) for p in points if p.size == HEAD + 1],
                    [(m, m / model.cost(Point("", int(m), HEAD + 1, 0)) * 1e6) for m in scale],
                )
                for name, style, points, model in (
                    ("busy: measured, and the model", "b", busy, busy_model),
                    ("calm: measured, and the model", "a", calm, calm_model),
                )
            ]
            + [
                (
                    "a bare C loop, one write a delivery",
                    "c",
                    [],
                    [(1, 1e6 / write), (1000, 1e6 / write)],
                )
            ],
            bottom=1e6 / max(p.cost for p in calm if p.members == 1),
        )
    )
    kept = KEPT / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    kept.write_text(
        json.dumps(
            {
                "commit": said("git", "describe", "--always", "--dirty"),
                "calm": calm,
                "busy": busy,
                "others": others,
                "joins": joins,
                "parts": inside,
                "calm model": calm_model,
                "busy model": busy_model,
                "write": write,
            }
        )
    )
    print(f"\nkept in {kept.relative_to(ROOT)}, {DOCS.relative_to(ROOT)}, {PLOT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
