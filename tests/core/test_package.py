"""What `import ycore` brings with it, and what it offers."""

from __future__ import annotations

import importlib.metadata
import runpy
import subprocess
import sys

import pytest

import ycore

PUBLIC = {
    *(
        "Awareness",
        "AwarenessChanged",
        "AwarenessEntry",
        "Close",
        "CloseCode",
        "CustomMessage",
        "Effect",
        "Hub",
    ),
    *(
        "Load",
        "LocalProtocolError",
        "Member",
        "Persist",
        "Probe",
        "ProtocolError",
        "RemoteProtocolError",
    ),
    *("Frame", "Room", "Send", "Settings", "State", "StructStore", "Unload", "UpdateLimits"),
    *("Document", "Provider", "ProviderSettings"),
    *("check_update", "diff_update", "encode_state_vector_from_update", "merge_updates"),
}

PROBE = """
import sys
before = set(sys.modules)
import ycore
import ycore.lib0, ycore.messages, ycore.updates, ycore.awareness, ycore.room, ycore.hub
import ycore.doc, ycore.provider
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""

IO_AND_TASKS = {
    *("anyio", "asyncio", "concurrent", "h11", "multiprocessing", "select", "selectors", "signal"),
    *("queue", "socket", "ssl", "subprocess", "threading", "time", "trio", "tempfile", "y_py"),
    *("logging", "random", "secrets", "wsproto", "ycore_adapters", "pathlib", "datetime"),
}


def test_importing_the_core_brings_no_io_no_tasks_no_clock_and_no_dependency() -> None:
    # -S and -I leave out what the environment itself would import.
    probe = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{PROBE}"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(probe.stdout.split())
    assert "ycore" in imported
    assert not imported & IO_AND_TASKS
    assert imported <= sys.stdlib_module_names | {"ycore", "ycore__mypyc"}  # if compiled


def test_the_public_names_are_these() -> None:
    assert set(ycore.__all__) == PUBLIC
    assert all(hasattr(ycore, name) for name in ycore.__all__)


def run(monkeypatch: pytest.MonkeyPatch) -> object:
    """`python -m ycore --version`; returns what it exits with."""
    monkeypatch.setattr(sys, "argv", ["ycore", "--version"])
    with pytest.raises(SystemExit) as done:
        runpy.run_module("ycore", run_name="__main__")
    return done.value.code


def test_python_m_runs_the_command_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch) == 0
    assert capsys.readouterr().out == f"ycore, version {importlib.metadata.version('ycore')}\n"


def test_python_m_says_what_to_do_where_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def distribution(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    said = str(run(monkeypatch))
    assert said.startswith("Error: ycore is not installed: pip install")
    assert "\n" not in said
