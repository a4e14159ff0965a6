"""What a test needs and does not find here."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(why: str) -> NoReturn:
    """Skip the test, with the reason; fail it where FTSCALE_REQUIRE_SHARED is 1, as .ci/run sets it."""
    if os.environ.get("FTSCALE_REQUIRE_SHARED") == "1":
        pytest.fail(why)
    pytest.skip(why)
