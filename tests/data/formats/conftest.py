"""How the format tests read a file: all rows, or the message of the refusal."""

from __future__ import annotations

from collections.abc import Callable, Collection

import pytest

from ftscale.base.errors import UserError
from ftscale.config.schema import SourceConfig
from ftscale.data.sources import read_rows


def _read(path: object, *roles: tuple[str, ...], absent: Collection[str] = (), **settings: object) -> list[dict]:
    source = SourceConfig(path=str(path), **settings)
    return list(read_rows(source, roles=roles or (("text", "label"),), absent=absent))


@pytest.fixture
def read() -> Callable[..., list[dict]]:
    """`read(path, roles, ..., **settings of the source)`: its rows."""
    return _read


@pytest.fixture
def refused() -> Callable[..., str]:
    """The same for a source that must be refused: the message."""

    def message(path: object, *roles: tuple[str, ...], **settings: object) -> str:
        with pytest.raises(UserError) as caught:
            _read(path, *roles, **settings)
        return str(caught.value)

    return message
