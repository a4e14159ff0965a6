"""What a method's settings are made of, and what they say of the method where torch is not imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ftscale.config.section import Section
from ftscale.config.tasks.base import Capability


class MethodSettings(Section):
    """What all methods' settings share; a method is the class of the same name in `ftscale/methods/`."""

    needs: ClassVar[frozenset[Capability]] = frozenset()
    """What the task must be able to do (`TaskSettings.can`)."""
    has_rule: ClassVar[bool] = False
    """Whether it brings a gradient rule, which looks at gradients between backward and update."""
    if TYPE_CHECKING:
        name: str
