"""Settings for all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# The suite is deterministic: the same examples every time. To look for new ones:
# HYPOTHESIS_PROFILE=explore .venv/bin/pytest tests/core
settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=5000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


@pytest.fixture
def ydocs_end_here(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """For tests with documents of y-py: what is in a circle has to end in the thread it began in,
    and not in a later test's. What was logged holds on to exceptions, and these to documents."""
    yield
    caplog.get_records("call").clear()
    gc.collect()
