"""Node.js, for the tests that run the real Yjs."""

import os
import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def require_node() -> str:
    """The path of node; skip the test where it or its packages are missing.

    With YCORE_REQUIRE_NODE=1 that is a failure, so that a skip can't hide in CI.
    """
    node = shutil.which("node")
    if node is not None and (HERE / "node_modules").is_dir():
        return node
    if node is None:
        reason = "needs Node.js: `node` is not on PATH"
    else:
        reason = "needs Node.js packages: run `npm ci` in tests/interop"
    if os.environ.get("YCORE_REQUIRE_NODE") == "1":
        pytest.fail(f"{reason} (and YCORE_REQUIRE_NODE=1)", pytrace=False)
    pytest.skip(reason)
