"""Whose code is run: what a model brings along counts where the user says so, never where the model's folder does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ftscale.base.errors import UserError
from ftscale.config.schema import ModelConfig


@dataclass(frozen=True)
class Trust:
    """What the user allows to a saved model that somebody else may have made."""

    code: bool = False
    """Code that comes with it is run."""
    pickle: bool = False
    """Weights of an adapter's base may be a pickle."""


NO_TRUST = Trust()


class NeedsCodeError(UserError):
    """A model, or what prepares its inputs, that cannot be had without code that comes with it."""


def needs_code(error: Exception) -> bool:
    """Whether transformers refused to run code."""
    return "trust_remote_code" in str(error)


def needed_code(folder: str | Path) -> NeedsCodeError:
    """What there is to say of a saved model whose code was not run."""
    return NeedsCodeError(
        f"the model in {str(folder)!r} comes with its own modelling code, and a run folder's own "
        "model.trust_remote_code does not count; read that code, then add --trust-remote-code."
    )


def without_code(config: ModelConfig) -> ModelConfig:
    """The same model, of which no code is run."""
    return config.model_copy(update={"trust_remote_code": False})
