"""A sample's tokens as text, its targets marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ftscale.tasks.base import Pieces


def marked(ids: Sequence[int], is_target: Sequence[bool], processor: Any) -> Pieces:
    """The tokens as text, cut where targets begin and end. is_target: one a token."""
    cuts = [place for place in range(1, len(ids)) if is_target[place] != is_target[place - 1]]
    pieces: Pieces = []
    before = ""
    for start, stop in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        # from the start: some drop the space before a first word
        text = processor.decode(ids[:stop], clean_up_tokenization_spaces=False)
        pieces.append((text.removeprefix(before), is_target[start]))
        before = text
    return pieces
