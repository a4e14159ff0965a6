"""The settings of every method: one file each, which is found by listing this folder."""

from __future__ import annotations

from ftscale.config.listed import listed
from ftscale.config.methods.base import MethodSettings

METHODS: dict[str, type[MethodSettings]] = listed(__name__, MethodSettings)
"""The settings' class by the method's name."""
