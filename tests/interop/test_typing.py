"""Type checkers on a user's file: what the package says of its types holds for those who use it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
APPLICATION = ROOT / "tests" / "typing" / "application.py"


@pytest.fixture(params=["as it is", "wrong"])
def application(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The application, or one with mistakes: a checker that finds none does not look."""
    path = tmp_path / "application.py"
    source = APPLICATION.read_text()
    if request.param == "wrong":
        source = source.replace("room.leave(member, now=2.0)", "room.leave(member)")
        source = source.replace("assert_type(doc, Doc)", "assert_type(doc, Room)")
    path.write_text(source)
    return path


def check(application: Path, *command: str | Path) -> None:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=application.parent
    )
    said = done.stdout + done.stderr
    mistakes = 0 if application.read_text() == APPLICATION.read_text() else 2
    assert (done.returncode, min(len(re.findall(r"[:-] error: ", said)), 2)) == (
        bool(mistakes),
        mistakes,
    ), said


def test_mypy(application: Path, tmp_path: Path) -> None:
    options = ["--strict", "--config-file", "", "--cache-dir", tmp_path / "cache"]
    check(application, sys.executable, "-m", "mypy", *options, application)


def test_pyright(application: Path, node: str, tmp_path: Path) -> None:
    config = tmp_path / "pyrightconfig.json"
    config.write_text(json.dumps({"typeCheckingMode": "strict", "include": [application.name]}))
    pyright = ROOT / "tests/interop/node_modules/pyright/index.js"
    check(application, node, pyright, "--project", config, "--pythonpath", sys.executable)
