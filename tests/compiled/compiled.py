"""ycore as `HATCH_BUILD_HOOKS_ENABLE=1 pip install` has it: with the hot path compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "ycore", ROOT / "adapters" / "ycore_adapters")


def missing() -> str | None:
    """What compiling needs, if that is not there."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"a C compiler: `{compiler}` is not on PATH"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return None if header.exists() else f"Python's headers: there is no {header}"


def compiled() -> Path:
    """The directory it is installed in: as the source is now, which may take two minutes.

    Raises:
        subprocess.CalledProcessError: it can't be built; the output says why.
    """
    target = Path(sys.prefix) / "compiled"
    made = target / ".made"
    files = [ROOT / "pyproject.toml", ROOT / "hatch_build.py"]
    files += [path for source in SOURCES for path in source.rglob("*.py")]
    newest = max(path.stat().st_mtime for path in files)
    if not made.exists() or made.stat().st_mtime < newest:
        shutil.rmtree(target, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run(
            [*pip, "--no-deps", "--no-build-isolation", "--target", str(target), str(ROOT)],
            env=os.environ | {"HATCH_BUILD_HOOKS_ENABLE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        made.touch()
        os.utime(made, (newest, newest))  # not now: the source may have changed meanwhile
    return target


def environment(target: Path) -> dict[str, str]:
    """The variables with which Python runs what is installed there, and no source beside it."""
    return {"PYTHONPATH": str(target), "PYTHONSAFEPATH": "1"}
