"""Our server beside others', under the same loads in the same run: `make bench-peers`.

`load.c` makes the load and measures, and says at its top how. Servers take turns (A B A B), so
that a noisy machine is noisy for all; shown are medians over the rounds, and medians of the ratios
within each round. Where there are two cores, the server has one and the generator another.

All are as they come, with documents in memory only; ours is measured with its file store, too, and
with that once more as it is when its hot path is compiled. A first round is not counted: it warms
up the compilers of others.

Results are kept as JSON in `.benchmarks/peers`; `--compare FILE` shows two of them side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.append(str(ROOT / "tests" / "compiled"))

from compiled import compiled, environment, missing  # noqa: E402

RESULTS = ROOT / ".benchmarks" / "peers"
NODE_MODULES = HERE / "node_modules"

Result: TypeAlias = dict[str, Any]
"""What `load.c` prints after one round, or {"failed": why}."""
Results: TypeAlias = dict[str, dict[str, list[Result]]]
"""Load -> server -> one result a round."""


class Failed(Exception):
    """A round that could not be measured, and why."""


# ---- servers


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to measure."""

    name: str
    command: Callable[[int, Path], list[str]]
    """From a free port and an empty directory."""
    needs: tuple[str, ...] = ()
    """Programs, packages of Node (with their directory), modules of Python, what mypyc needs."""
    dialect: tuple[str, ...] = ()
    """What the generator has to be told."""

    def missing(self) -> str | None:
        """What it would need, if that is not there."""
        for need in self.needs:
            if need == "node":
                if shutil.which("node") is None:
                    return "Node.js: `node` is not on PATH"
            elif need == "mypyc":
                if (missing_to_compile := missing()) is not None:
                    return missing_to_compile
            elif "/" in need:
                if not (NODE_MODULES / need).is_dir():
                    return f"{need}: run `npm ci` in tests/benchmarks"
            elif find_spec(need) is None:
                return f"{need}: install the dependency group `peers`"
        return None


def ycore(port: int, *store: str) -> list[str]:
    program = [sys.executable, "-m", "ycore_adapters.cli", "serve", "--port", str(port)]
    return [*program, *store, "--max-connections-per-address", "10000"]  # all come from here


def ycore_with_files(port: int, directory: Path) -> list[str]:
    return ycore(port, "--data", str(directory / "data"))


def ycore_compiled(port: int, directory: Path) -> list[str]:
    progress("compiling")
    try:
        variables = environment(compiled())
    except subprocess.CalledProcessError as exc:
        raise Failed(f"could not be compiled: {exc.stdout}") from None
    settings = [f"{name}={value}" for name, value in variables.items()]
    return ["env", *settings, *ycore_with_files(port, directory)]


OURS: Final = ("ycore, files", "ycore, memory", "ycore, compiled")
FLOOR: Final = "a bare C loop"
PEERS = (
    Peer(OURS[0], ycore_with_files),
    Peer(OURS[1], lambda port, _: ycore(port, "--memory")),
    Peer(OURS[2], ycore_compiled, needs=("mypyc",)),
    Peer(
        "pycrdt-websocket",
        lambda port, _: [sys.executable, str(HERE / "pycrdt_server.py"), str(port)],
        needs=("pycrdt", "uvicorn"),
    ),
    Peer(
        "@y/websocket-server",
        lambda port, _: [
            *("env", f"PORT={port}", "HOST=127.0.0.1", "node"),
            str(NODE_MODULES / "@y/websocket-server/src/server.js"),
        ],
        needs=("node", "@y/websocket-server"),
    ),
    Peer(
        "Hocuspocus",
        lambda port, _: ["node", str(HERE / "hocuspocus.mjs"), str(port)],
        needs=("node", "@hocuspocus/server"),
        dialect=("--hocuspocus",),
    ),
)


class Server:
    """A server that runs."""

    def __init__(
        self, peer: Peer, port: int, process: subprocess.Popen[bytes], log: BinaryIO
    ) -> None:
        self.peer = peer
        self.port = port
        self.process = process
        self.log = log
        self.rounds = 0

    def last_words(self) -> str:
        """What it printed last."""
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - 300))
        return self.log.read().decode(errors="replace").strip()

    def pids(self) -> list[int]:
        """Its process and all below it."""
        found = [self.process.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        return found


def cores() -> tuple[int | None, int | None]:
    """Where the server runs, and where the generator; None: anywhere."""
    ours = sorted(os.sched_getaffinity(0))
    return (ours[0], ours[1]) if len(ours) > 1 else (None, None)


@contextmanager
def serving(peer: Peer) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    core, _ = cores()
    pin = ["taskset", "-c", str(core)] if core is not None else []
    with tempfile.TemporaryDirectory(dir=RESULTS) as directory, ExitStack() as stack:
        log = stack.enter_context((Path(directory) / "log").open("a+b"))
        command = [*pin, *peer.command(port, Path(directory))]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=HERE)
        server = Server(peer, port, process, log)
        try:
            deadline = time.monotonic() + 30
            while True:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"did not start: {server.last_words()}")
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# ---- loads


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the generator does, and what is looked at."""

    name: str
    options: dict[str, float]
    """Of the generator."""
    unit: str = "deliveries per server CPU second"
    figure: Callable[[Result], float] = lambda result: float(result["deliveries_per_cpu_second"])
    less_is_better: bool = False
    characters: int = 0
    """If not 0, the room has a document from the beginning, of 100,000 insertions by 20 authors, of
    so many characters each: with 1 of 0.9 MB, with 33 of 5 MB."""
    fresh: bool = False
    """Whether each round has a server of its own, since memory is measured."""
    floor: bool = False
    """Whether the bare C loop writes as much, for comparison."""
    only: tuple[str, ...] = ()
    """Whose servers it is for; all, if none is named."""


def memory_per_connection(result: Result) -> float:
    grown = float(result["memory_open"] - result["memory_before"])
    return grown / int(result["connections"]) / 1024


def cpu_per_join(result: Result) -> float:
    return float(result["server_cpu"]) / int(result["joins"]) * 1000


def memory_grown(result: Result) -> float:
    return float(max(result["memory"]) - result["memory_open"]) / 2**20


def memory_at_end(result: Result) -> float:
    return float(result["memory"][-1]) / 2**20


LOADS = (
    Load(
        name="20 rooms x 3 clients, 400 updates/s in all",
        options={"rooms": 20, "clients": 3, "rate": 400},
    ),
    Load(
        name="1 room x 50 clients, 40 updates/s",
        options={"rooms": 1, "clients": 50, "rate": 40},
    ),
    Load(
        name="4 rooms x 8 clients, saturated: 2 writers in each, 4 in flight",
        options={"rooms": 4, "clients": 8, "writers": 2, "in-flight": 4},
    ),
    Load(
        name="1 room x 50 clients, saturated: 2 writers, 4 in flight",
        options={"rooms": 1, "clients": 50, "writers": 2, "in-flight": 4},
    ),
    Load(
        name="1 room x 50 clients, saturated: all write, 4 in flight",
        options={"rooms": 1, "clients": 50, "in-flight": 4},
    ),
    Load(
        name="1 room x 100 clients, 200 updates/s",
        options={"rooms": 1, "clients": 100, "rate": 200},
        floor=True,
    ),
    Load(
        name="awareness storm: 1 room x 30 clients, 10 states/s each",
        options={"rooms": 1, "clients": 30, "rate": 300, "awareness": 1},
    ),
    Load(
        name="joins, one after the other, to a document of 100,000 edits by 20 authors",
        options={"rooms": 1, "clients": 2, "writers": 0, "joiners": 50, "at-once": 1},
        unit="server CPU ms per join",
        figure=cpu_per_join,
        less_is_better=True,
        characters=1,
    ),
    Load(
        name="joins, one after the other, to a document of 5 MB",
        options={"rooms": 1, "clients": 2, "writers": 0, "joiners": 20, "at-once": 1},
        unit="server CPU ms per join",
        figure=cpu_per_join,
        less_is_better=True,
        characters=33,
    ),
    Load(
        name="join herd: 100 at once to 5 MB, while 10 clients make 20 updates/s",
        options={"rooms": 1, "clients": 10, "rate": 20, "joiners": 100, "at-once": 100},
        unit="server CPU ms per join",
        figure=cpu_per_join,
        less_is_better=True,
        characters=33,
        fresh=True,
    ),
    Load(
        name="join herd: 1,000 at once to 5 MB, while 10 clients make 20 updates/s",
        options={"rooms": 1, "clients": 10, "rate": 20, "joiners": 1000, "at-once": 1000},
        unit="MB the server grew by at most",
        figure=memory_grown,
        less_is_better=True,
        characters=33,
        fresh=True,
        only=OURS,
    ),
    Load(
        name="1,000 idle connections in 100 rooms",
        options={"rooms": 100, "clients": 10, "writers": 0, "seconds": 1},
        unit="KB of memory per connection",
        figure=memory_per_connection,
        less_is_better=True,
        fresh=True,
    ),
    Load(
        # 40 MB: ten minutes of someone who pastes a page every ten seconds, and six who type
        name="1 room x 10 clients, 4 MB/s in updates of 10 KB, all read",
        options={"rooms": 1, "clients": 10, "rate": 400, "size": 10_000, "seconds": 10},
        unit="MB of server memory at the end",
        figure=memory_at_end,
        less_is_better=True,
        fresh=True,
    ),
    Load(
        name="the same with one more that never reads",
        options={"rooms": 1, "clients": 10, "rate": 400, "size": 10_000, "seconds": 10, "stuck": 1},
        unit="MB of server memory at the end",
        figure=memory_at_end,
        less_is_better=True,
        fresh=True,
    ),
)


def programs() -> Path:
    """The directory of the compiled programs of this folder."""
    if sys.platform != "linux":
        sys.exit("bench-peers needs Linux: the load generator uses epoll and /proc")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("bench-peers needs a C compiler: neither `cc` nor `gcc` is on PATH")
    built = Path(sys.prefix) / "bench"
    built.mkdir(exist_ok=True)
    for source in HERE.glob("*.c"):
        program = built / source.stem
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            subprocess.run([compiler, "-O2", "-o", program, source], check=True)
    return built


def document(characters: int) -> Path:
    """A file with an update: the document that is there from the beginning."""
    path = RESULTS / f"document-{characters}.update"
    script = HERE / "document.mjs"
    if not path.exists() or path.stat().st_mtime < script.stat().st_mtime:
        if shutil.which("node") is None:
            raise Failed("Node.js makes the document, and `node` is not on PATH")
        command = ["node", script, str(characters)]
        path.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    return path


def printed(command: Sequence[str]) -> Result:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise Failed(done.stderr.strip())
    result: Result = json.loads(done.stdout)
    return result


def measure(load: Load, server: Server, seconds: float) -> Result:
    """One round of a load."""
    options = {"seconds": seconds, **load.options}
    arguments = [str(programs() / "load"), "--port", str(server.port)]
    arguments += ["--room", f"bench-{server.rounds}", *server.peer.dialect]
    server.rounds += 1  # a room of its own for each round
    if options.pop("awareness", False):
        arguments.append("--awareness")
    for name, value in options.items():
        arguments += [f"--{name}", str(value)]
    if load.characters:
        arguments += ["--document", str(document(load.characters))]
    for pid in server.pids():
        arguments += ["--pid", str(pid)]
    if (core := cores()[1]) is not None:
        arguments += ["--core", str(core)]
    try:
        return printed(arguments)
    except Failed as exc:
        raise Failed(f"{exc}; the server's last words: {server.last_words()}") from None


def measure_floor(load: Load, seconds: float) -> Result:
    server_core, reader_core = cores()
    sockets = int(load.options["clients"]) - 1
    arguments = [str(programs() / "floor"), str(sockets), "29", str(load.options["rate"])]
    arguments.append(str(seconds))
    if server_core is not None:
        arguments += [str(server_core), str(reader_core)]
    result = printed(arguments)
    return {"deliveries_per_cpu_second": result["writes_per_cpu_second"], **result}


def run(load: Load, peers: Sequence[Peer], rounds: int, seconds: float) -> dict[str, list[Result]]:
    """All rounds of a load, servers in turn."""
    results: dict[str, list[Result]] = {peer.name: [] for peer in peers}
    if load.floor:
        results[FLOOR] = []
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for number in range(0 if load.fresh else -1, rounds):
            for peer in peers:
                progress(f"{load.name}: round {max(number, 0) + 1} of {rounds}, {peer.name}")
                try:
                    if load.fresh:
                        with serving(peer) as server:
                            result = measure(load, server, seconds)
                    else:
                        if peer.name not in servers:
                            servers[peer.name] = stack.enter_context(serving(peer))
                        result = measure(load, servers[peer.name], seconds)
                except (Failed, subprocess.TimeoutExpired) as exc:
                    result = {"failed": str(exc)}
                if number >= 0:
                    results[peer.name].append(result)
            if load.floor and number >= 0:
                results[FLOOR].append(measure_floor(load, seconds))
    progress("")
    return results


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


# ---- what is shown


def figures(load: Load, results: Sequence[Result]) -> list[float | None]:
    return [None if "failed" in result else load.figure(result) for result in results]


def median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def ratio(load: Load, ours: Sequence[Result], theirs: Sequence[Result]) -> float | None:
    """How many times better ours is: the median of the rounds."""
    ratios = [
        None if a is None or not b or not a else (b / a if load.less_is_better else a / b)
        for a, b in zip(figures(load, ours), figures(load, theirs), strict=True)
    ]
    return median(ratios)


def shown(value: float | None, width: int, digits: int = 2) -> str:
    return f"{'-' if value is None else format(value, f',.{digits}f'):>{width}}"


def print_table(load: Load, results: dict[str, list[Result]]) -> None:
    print(f"\n{load.name}: {load.unit}")
    ours = [name for name in OURS if name in results]
    heads = "".join(f"{name.removeprefix('ycore, ') + ' x':>11}" for name in ours)
    print(f"{'':22}{'':>11}{'p50 ms':>10}{'p99 ms':>10}{'lost':>7}{'waited':>8}{'gen.':>6}{heads}")
    for name, rounds in results.items():
        good = [result for result in rounds if "failed" not in result]
        value = median(figures(load, rounds))
        line = f"  {name:20}{shown(value, 11, 0 if value and value > 1000 else 2)}"
        line += shown(median([r.get("p50_ms") for r in good]), 10, 3)
        line += shown(median([r.get("p99_ms") for r in good]), 10, 3)
        if good and name != FLOOR:
            line += f"{sum(r['lost'] for r in good):>7,}"
            line += f"{median([r['server_waited'] / r['seconds'] for r in good]):>8.0%}"
            line += f"{median([r['generator_busy'] for r in good]):>6.0%}"
        else:
            line += f"{'':21}"
        for our in ours:
            line += shown(ratio(load, results[our], rounds) if our != name else None, 11)
        if good and "joins" in good[0]:
            usual = median([r["join_p50_ms"] for r in good])
            line += f"   a join took {shown(usual, 0, 0)} ms"
        print(line)
        for result in rounds:
            if "failed" in result:
                print(f"      a round failed: {result['failed']}")
                break


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown(results: Results) -> str:
    """All loads in one table: the figure, and p99 in ms where there is one."""
    names = [peer.name for peer in PEERS] + [FLOOR]
    lines = [f"| | {' | '.join(names)} |", "| --- |" + " ---: |" * len(names)]
    for load in LOADS:
        if load.name not in results:
            continue
        line = f"| {load.name}: *{load.unit}* |"
        for name in names:
            rounds = results[load.name].get(name, [])
            value = median(figures(load, rounds))
            p99 = median([result.get("p99_ms") for result in rounds if "failed" not in result])
            line += " " if value is None else f" {number(value)}"
            line += "" if value is None or p99 is None else f" (p99 {p99:.3g})"
            line += "failed |" if value is None and rounds else " |"
        lines.append(line)
    return "\n".join(lines)


def write_between(path: Path, name: str, text: str) -> None:
    """Put text into a document, between `<!-- name -->` and `<!-- /name -->`."""
    before, begin, rest = path.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    path.write_text(f"{before}{begin}\n{text}\n\n{end}{after}")


def print_comparison(now: Result, then: Result) -> None:
    """Two runs: by themselves, and by what each was beside the others in its own run."""
    print(f"\ncompared with {then['commit']} of {then['when']}: now / then, above 1 is better")
    print("  (beside the others: the same, of the ratios to each; another machine matters less)")
    for load in LOADS:
        old, new = then["results"].get(load.name), now["results"].get(load.name)
        if old is None or new is None:
            continue
        print(f"  {load.name}")
        for name in OURS:
            if name not in old or name not in new:
                continue
            a, b = median(figures(load, new[name])), median(figures(load, old[name]))
            change = None if not a or not b else (b / a if load.less_is_better else a / b)
            beside = [
                p / q
                for other in new.keys() & old.keys() - set(OURS)
                if (p := ratio(load, new[name], new[other]))
                and (q := ratio(load, old[name], old[other]))
            ]
            line = f"    {name:20}{shown(change, 8)}   beside the others"
            print(line + shown(median(beside), 8))


def said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    except OSError:
        return "none"
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    parser.add_argument("--load", action="append", help="only loads whose name has this in it")
    parser.add_argument("--peer", action="append", help="only servers whose name has this in it")
    parser.add_argument("--docs", action="store_true", help="write the table into docs")
    parser.add_argument("--compare", type=Path, help="a result of an earlier run")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    then = json.loads(arguments.compare.read_text()) if arguments.compare else None
    programs()

    def wanted(name: str, chosen: list[str] | None) -> bool:
        return chosen is None or any(part in name for part in chosen)

    peers = []
    for peer in PEERS:
        if wanted(peer.name, arguments.peer):
            if (missing := peer.missing()) is not None:
                print(f"skipped: {peer.name} needs {missing}")
            else:
                peers.append(peer)
    print(
        "waited: how long the server was ready to run while something else had its core (then the\n"
        "machine is shared); gen.: how busy the generator's core was; x: how many times better ours"
    )
    if cores() == (None, None):
        print("one core only: the generator and the server share it, and p99 says little")
    results: Results = {}
    report = {
        "when": time.strftime("%Y-%m-%d %H:%M:%S"),
        "commit": said("git", "describe", "--always", "--dirty"),
        "python": platform.python_version(),
        "node": said("node", "--version"),
        "seconds": arguments.seconds,
        "results": results,
    }
    path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}-{report['commit']}.json"
    for load in LOADS:
        if not wanted(load.name, arguments.load):
            continue
        if load.characters and shutil.which("node") is None:
            print(f"\nskipped: {load.name}: Node.js makes the document, and is not on PATH")
            continue
        those = [peer for peer in peers if not load.only or peer.name in load.only]
        results[load.name] = run(load, those, arguments.rounds, arguments.seconds)
        print_table(load, results[load.name])
        path.write_text(json.dumps(report))
    print(f"\nkept in {path.relative_to(ROOT)}")
    if arguments.docs:
        write_between(ROOT / "docs" / "performance.md", "peers", markdown(results))
    if then is not None:
        print_comparison(report, then)


if __name__ == "__main__":
    main()
