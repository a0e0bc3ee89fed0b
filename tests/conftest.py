"""Settings for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# The suite is deterministic: the same examples every time. To look for new ones:
# HYPOTHESIS_PROFILE=explore .venv/bin/pytest tests/core
settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=5000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))
