"""The compiled build does what its source says: it passes the tests of what is in it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from compiled import ROOT, compiled, environment, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"needs {missing()}")

TESTS = (
    "tests/core",
    *(
        f"tests/adapters/test_{name}.py"
        for name in (
            "asgi",
            "deleting",
            "documents",
            "driver",
            "eventloop",
            "hooks",
            "hostile",
            "limits",
        )
    ),
    *("tests/adapters/test_peer.py", "tests/adapters/test_server.py"),
)


@pytest.fixture(scope="module")
def target() -> Path:
    try:
        return compiled()
    except subprocess.CalledProcessError as exc:
        pytest.fail(exc.stdout)


def python(target: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment(target) | more,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_hot_path_is_compiled_and_nothing_compiled_is_left_in_the_source(target: Path) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = settings["tool"]["hatch"]["build"]["targets"]["wheel"]
    names = [
        name.removesuffix(".py").replace("/", ".") for name in wheel["hooks"]["custom"]["modules"]
    ]
    script = "import sys, importlib as i\nfor m in sys.argv[1:]: print(i.import_module(m).__file__)"
    files = [Path(line) for line in python(target, "-c", script, *names).stdout.splitlines()]
    assert len(files) == len(names) > 10
    for file in files:
        assert file.suffix in (".so", ".pyd")
        assert file.is_relative_to(target)
    for source in ("ycore", "adapters"):
        assert not [*(ROOT / source).rglob("*.so"), *(ROOT / source).rglob("*.pyd")]


def test_beside_a_source_it_says_what_to_do(target: Path) -> None:
    done = python(target, "-c", "import ycore_adapters.server", PYTHONSAFEPATH="")
    assert "ImportError: ycore_adapters is compiled" in done.stderr
    assert str(ROOT / "ycore") in done.stderr
    assert "run Python with -P" in done.stderr


_CANCELLED = """
import sys

import anyio
from ycore_adapters.driver import Driver
from ycore_adapters.stores import MemoryStore

async def main():
    async with Driver(MemoryStore()):
        await anyio.lowlevel.checkpoint()  # its tasks wait now, and are cancelled at the end

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_cancelled_task_warns_of_nothing(target: Path, backend: str) -> None:
    """mypyc's own way to throw an exception into what is awaited is deprecated."""
    done = python(target, "-W", "error", "-c", _CANCELLED, backend)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_compiled_passes_the_tests_of_its_source(target: Path) -> None:
    done = python(
        target, "-m", "pytest", "-q", "-m", "not source", "-p", "no:cacheprovider", *TESTS
    )
    assert done.returncode == 0, done.stdout + done.stderr
