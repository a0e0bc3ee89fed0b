"""The "after" snippets of docs/migrating.md: mypy accepts them, and those that can run do."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "migrating.md").read_text()
SNIPPETS = re.findall(r"<!-- after(?:: (\S+))? -->\n```python\n(.*?)```", PAGE, re.DOTALL)
NEEDS = {"import pycrdt": "pycrdt", "ycore_adapters.client": "ycore_adapters.client"}


def snippets() -> list[str]:
    """Those whose imports are there."""
    return [
        code
        for _, code in SNIPPETS
        if all(find_spec(module) for text, module in NEEDS.items() if text in code)
    ]


def test_mypy_accepts_them(tmp_path: Path) -> None:
    assert len(SNIPPETS) == 7
    found = snippets()
    for number, code in enumerate(found):
        (tmp_path / f"snippet{number}.py").write_text(code)
    files = [str(tmp_path / f"snippet{number}.py") for number in range(len(found))]
    command = ["-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *files]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("code", snippets(), ids=range(len(snippets())))
def test_they_run(code: str, tmp_path: Path) -> None:
    """Those that only define something do that; the others look themselves whether it worked."""
    code = code.replace('listen_tcp("127.0.0.1", 1234)', 'listen_tcp("127.0.0.1", 0)')
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_links_lead_somewhere() -> None:
    for target, anchor in re.findall(r"\]\(([\w./]*)(?:#([\w-]+))?\)", PAGE):
        page = (ROOT / "docs" / target) if target else ROOT / "docs" / "migrating.md"
        headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
        assert not anchor or anchor in anchors, (target, anchor)
