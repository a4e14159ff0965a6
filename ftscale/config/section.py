"""What every part of the configuration is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ftscale.base.shown import control_characters

Fraction = Annotated[float, Field(ge=0, le=1)]


def _one_line(value: str) -> str:
    if found := control_characters(value):
        raise ValueError(f"must hold no line ends and other control characters (it has {found})")
    return value


OneLine = Annotated[str, AfterValidator(_one_line)]
"""A text that reaches a job script, where a line end would begin a command."""


class Section(BaseModel):
    """A part of the configuration: frozen, unknown keys refused, field docstrings kept as descriptions."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        serialize_by_alias=True,  # `async` in files, which is no name in Python
    )
