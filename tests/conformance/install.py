"""Installs the Autobahn test suite, a Python 2.7 program, into `.autobahn` as pinned beside this.

python install.py          install it; fail where it can't be
python install.py --find   print the Python 2.7 it would run on; fail where there is none
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
INSTALLED = HERE.parent.parent / ".autobahn"
REQUIREMENTS = HERE / "requirements.txt"


class Unavailable(Exception):
    """What is missing."""


def _candidates() -> Iterator[str]:
    if named := os.environ.get("YCORE_PYTHON2"):
        yield named
        return
    if found := shutil.which("python2.7"):
        yield found
    if pyenv := shutil.which("pyenv"):
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True, check=False)
        for path in sorted(Path(root.stdout.strip() or "/nowhere").glob("versions/2.7*")):
            yield str(path / "bin" / "python")


def find_python2() -> str:
    """A CPython 2.7 that runs, and has pip.

    Raises:
        Unavailable: there is none.
    """
    for path in _candidates():
        try:  # pyenv puts something on PATH that only says that there is nothing
            tried = subprocess.run(
                [path, "-c", "import sys, pip; assert sys.version_info[:2] == (2, 7)"],
                capture_output=True,
                check=False,
            )
        except OSError:
            continue
        if tried.returncode == 0:
            return path
    raise Unavailable(
        "the Autobahn test suite needs Python 2.7 with pip: as YCORE_PYTHON2, as python2.7 on PATH "
        "or from pyenv"
    )


def install() -> str:
    """Install the suite if it is not there; return the Python to run it with.

    Raises:
        Unavailable: it can't be.
    """
    python = find_python2()
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    marker = INSTALLED / "installed"
    if not marker.exists() or marker.read_text() != wanted:
        shutil.rmtree(INSTALLED, ignore_errors=True)
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command += ["--requirement", str(REQUIREMENTS), "--target", str(INSTALLED)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            why = done.stderr.strip()[-2000:]
            raise Unavailable(f"the Autobahn test suite can't be installed:\n{why}")
        marker.write_text(wanted)
    return python


if __name__ == "__main__":
    try:
        print(find_python2() if "--find" in sys.argv else install())
    except Unavailable as exc:
        sys.exit(str(exc))
