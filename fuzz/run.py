"""Run fuzz targets: `make fuzz`, or `python fuzz/run.py --help`.

Two engines. `coverage` is atheris: it follows which code an input reaches, and finds its way into
new branches. `plain` takes seeds and mutates them with no such feedback; it runs several times as
many inputs in the same time, and needs nothing installed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "adapters")]

from mutator import mutate, mutate_bytes  # noqa: E402

CORPUS: Final = HERE / "corpus"
FOUND: Final = HERE / "found"
HANG: Final = 20
"""Seconds after which an input counts as a hang."""
MAX_LENGTH: Final = 20_000
Mutation = Callable[[bytes, random.Random], bytes]


def seeds(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


def mutation_for(target: str, updates: list[bytes]) -> Mutation:
    """How inputs of a target are mutated: those that hold updates, as updates."""
    from targets import pack, unpack  # noqa: PLC0415

    def several(data: bytes, rng: random.Random) -> bytes:
        parts = unpack(data) or [data]
        what = rng.randrange(8)
        at = rng.randrange(len(parts))
        if what == 0:
            parts.insert(at, rng.choice(updates))
        elif what == 1:
            rng.shuffle(parts)
        elif what == 2:
            parts.append(mutate(parts[at], rng, updates))
        elif what == 3 and len(parts) > 1:
            del parts[at]
        else:
            parts[at] = mutate(parts[at], rng, updates)
        return pack(parts[-12:])

    def operations(data: bytes, rng: random.Random) -> bytes:
        """Room operations: now and then, put one with an update in it somewhere."""
        if rng.random() < 0.5:
            return mutate_bytes(data, rng)
        update = mutate(rng.choice(updates), rng, updates)
        if len(update) >= 0xF0:
            return mutate_bytes(data, rng)
        step = bytes((10, rng.randrange(256), len(update))) + update
        at = rng.randrange(len(data) + 1)
        return data[:at] + step + data[at:]

    def one(data: bytes, rng: random.Random) -> bytes:
        return mutate(data, rng, updates)

    return {"update": one, "updates": several, "rooms": operations}.get(target, mutate_bytes)


def run_plain(target: str, seconds: float, seed: int) -> tuple[int, int]:
    """Mutate and run for a while; returns how many inputs were run, and how many failed."""
    from targets import TARGETS  # noqa: PLC0415

    run = TARGETS[target]
    rng = random.Random(seed)
    corpus = seeds(target)
    change = mutation_for(target, seeds("update"))
    signal.signal(signal.SIGALRM, _hangs)
    count = failed = 0
    data = b""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        # Some mutations deep from each seed: what one breaks the next may build on.
        data = rng.choice(corpus)
        for _ in range(rng.choice((1, 2, 4, 8))):
            data = change(data, rng)[:MAX_LENGTH]
            count += 1
            signal.alarm(HANG)
            try:
                run(data)
            except Exception:
                failed += 1
                _keep(target, data)
                if failed == 10:
                    return count, failed
                break
            finally:
                signal.alarm(0)
    return count, failed


def _hangs(*_: object) -> None:
    raise TimeoutError(f"still running after {HANG} s")


def _keep(target: str, data: bytes) -> None:
    FOUND.mkdir(exist_ok=True)
    path = FOUND / f"{target}-{sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    traceback.print_exc()
    print(f"kept as {path}", file=sys.stderr)


def run_coverage(target: str, seconds: float, seed: int) -> None:
    """Hand over to atheris, which ends the process itself."""
    import atheris  # noqa: PLC0415

    # What is imported already would not be followed.
    ours = ("ycore", "ycore_adapters", "targets")
    for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
        del sys.modules[name]
    with atheris.instrument_imports(include=["ycore", "ycore_adapters"]):
        from targets import TARGETS  # noqa: PLC0415

    change = mutation_for(target, seeds("update"))

    def custom_mutator(data: bytes, max_size: int, mutator_seed: int) -> bytes:
        rng = random.Random(mutator_seed)
        if change is mutate_bytes or rng.random() < 0.3:
            return bytes(atheris.Mutate(data, max_size))
        return change(data, rng)[:max_size]

    FOUND.mkdir(exist_ok=True)
    arguments = [
        sys.argv[0],
        f"-max_total_time={int(seconds)}",
        f"-timeout={HANG}",
        f"-max_len={MAX_LENGTH}",
        f"-artifact_prefix={FOUND}/{target}-",
        f"-seed={seed}",
        "-print_final_stats=1",
        str(CORPUS / target),
    ]
    scratch = Path(os.environ.get("YCORE_FUZZ_SCRATCH", FOUND / f"corpus-{target}"))
    scratch.mkdir(parents=True, exist_ok=True)
    arguments.insert(-1, str(scratch))  # new inputs go to the first directory
    atheris.Setup(arguments, TARGETS[target], custom_mutator=custom_mutator)
    atheris.Fuzz()


def run_coverage_apart(target: str, seconds: float, seed: int) -> tuple[int, int]:
    """`run_coverage` in a process of its own; returns how many inputs it ran, and its findings."""
    command = [sys.executable, __file__, target, "--seconds", str(seconds), "--seed", str(seed)]
    command += ["--engine", "coverage", "--here"]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    count = 0
    for line in result.stderr.splitlines():
        if line.startswith("stat::number_of_executed_units:"):
            count = int(line.split()[-1])
    if result.returncode or not count:
        print(result.stderr[-5000:], file=sys.stderr)
    return count, int(result.returncode != 0)


def main() -> None:
    from targets import TARGETS  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("target", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=30, help="for each target")
    parser.add_argument("--engine", choices=["coverage", "plain"], action="append")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.target) - TARGETS.keys():
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if options.here:
        run_coverage(options.target[0], options.seconds, options.seed)
    print(f"{'target':14} {'engine':9} {'executions':>12} {'seconds':>8} {'a second':>9}  findings")
    bad = 0
    for target in options.target or TARGETS:
        for engine in options.engine or ["plain"]:
            began = time.monotonic()
            run = run_plain if engine == "plain" else run_coverage_apart
            count, failed = run(target, options.seconds, options.seed)
            took = time.monotonic() - began
            print(
                f"{target:14} {engine:9} {count:12,} {took:8.0f} {count / took:9,.0f}  {failed}",
                flush=True,
            )
            bad += failed
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
