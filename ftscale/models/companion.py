"""Frozen models beside the one that trains: a teacher, a reference, a maker of features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ftscale.config.schema import ModelConfig
from ftscale.models.files import model_fingerprints
from ftscale.models.load import LABEL_SETTINGS, load_model
from ftscale.models.trust import Trust

SEED = 0
"""Of weights that are to be random, the same in every run."""


@dataclass(eq=False)
class Companion:
    """A frozen model, called as the trained one is: `companion(**batch.inputs)`.

    A task makes it once, in its constructor, and names it in `companions` or in a computed column. It is loaded where
    rows with labels are trained on or scored, and not for predictions. It is no module, so that nothing of it reaches
    optimizer, checkpoints, the saved model or DDP.
    """

    name: str
    """What messages call it, e.g. "teacher"."""
    model: ModelConfig
    """As the `model` section of a configuration: safetensors only, and none of its code is run, unless that says so."""
    auto_class: str
    """Name of the transformers Auto class."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of its config that the task sets."""
    pools: bool = False
    """Whether it makes one position of a sample's many."""
    dtype: torch.dtype | None = None
    """Of its weights; None = the one of the model that trains."""
    module: nn.Module | None = field(default=None, init=False, repr=False)
    """The model where it is loaded, in eval mode on this rank's device."""

    def __call__(self, **inputs: Any) -> Any:
        """Its outputs, without gradients. Under ZeRO-3 collective: each rank must call it as often as the others."""
        assert self.module is not None, f"the companion {self.name} is not loaded"
        with torch.no_grad():
            return self.module(**inputs)

    def __getstate__(self) -> dict[str, Any]:
        """As worker processes take it along: without the weights."""
        return {**self.__dict__, "module": None}

    @property
    def is_fresh(self) -> bool:
        """Whether weights of it are random, which no strategy may draw in pieces."""
        return self.model.init == "random" or bool(LABEL_SETTINGS & self.settings.keys())

    def identity(self) -> dict[str, Any]:
        """What its outputs follow from, JSON-able: its files by content, wherever they lie, and how it is made of them.

        Files that are not here (of the hub, before the first download) are known by their name alone.
        """
        files = [
            sorted([path.rpartition("/")[2], content] for path, content in of_setting.items())
            for of_setting in model_fingerprints(self.model).values()
        ]
        how = self.model.model_dump(mode="json")
        if files[0]:
            del how["name"]
        return {"files": files, "how": how, "settings": dict(self.settings), "class": self.auto_class}


def load_companion(companion: Companion, *, dtype: torch.dtype, trust: Trust) -> PreTrainedModel:
    """The model, frozen and in eval mode. `trust`: what of its own `model` section's trust counts.

    `dtype`: of the model that trains. Raises UserError as `load_model` does.
    """
    model = load_model(
        trusted(companion.model, trust),
        auto_class=companion.auto_class,
        settings=dict(companion.settings),
        dtype=companion.dtype or dtype,
        seed=SEED,
    )
    return model.requires_grad_(False).eval()


def trusted(config: ModelConfig, trust: Trust) -> ModelConfig:
    """The model with no more trust than this."""
    code, pickle = config.trust_remote_code and trust.code, config.allow_pickle and trust.pickle
    return config.model_copy(update={"trust_remote_code": code, "allow_pickle": pickle})
