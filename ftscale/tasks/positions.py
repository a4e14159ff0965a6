"""Stretches of positions in a sample, by which losses of tokens are noted. Imports no torch: pages read it."""

from __future__ import annotations

FIRST_POSITIONS = 16
"""The first stretch: fewer tokens than these are before a target. Of each next one, fewer than twice as many."""
BY_POSITION, TARGETS_BY_POSITION = "losses_by_position", "targets_by_position"
"""Columns of rows: of each stretch the mean loss, None where it has no target, and the number of its targets."""
