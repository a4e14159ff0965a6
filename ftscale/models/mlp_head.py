"""A classifier with hidden layers, for any transformers model: a copy of this file lies beside the saved weights.

It imports torch and transformers alone, so that the saved folder loads wherever they are:
`AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True)`.
"""

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN


class MLPHead(nn.Linear):
    """(..., in_features) -> (..., out_features) through hidden layers, with dropout before each layer.

    The first layer is this module itself, under the name of the layer that it replaces: a program that loads the
    folder without this file then stops on the shape of that weight, instead of going on with a random classifier.
    """

    def __init__(
        self, in_features: int, hidden_sizes: list[int], out_features: int, *, activation: str, dropout: float
    ) -> None:
        super().__init__(in_features, hidden_sizes[0])
        sizes = [*hidden_sizes, out_features]
        self.dropout = nn.Dropout(dropout)
        self.activation = ACT2FN[activation]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Run the hidden layers and the last one: (..., in_features) to (..., out_features)."""
        hidden = super().forward(self.dropout(hidden))
        for layer in self.layers:
            hidden = layer(self.dropout(self.activation(hidden)))
        return hidden


def put_head(model: nn.Module, settings: dict[str, Any]) -> None:
    """Replace the linear layer called `settings["module"]` by an MLPHead of the same sizes, dtype and device."""
    old = model.get_submodule(settings["module"])
    new = MLPHead(
        old.in_features,
        settings["hidden_sizes"],
        old.out_features,
        activation=settings["activation"],
        dropout=settings["dropout"],
    )
    model.set_submodule(settings["module"], new.to(device=old.weight.device, dtype=old.weight.dtype))


def with_mlp_head(base: type) -> type:
    """A subclass of the transformers model class `base` whose config says in `mlp_head` which head to put."""

    class WithMLPHead(base):  # type: ignore[valid-type,misc]
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            put_head(self, config.mlp_head)

    WithMLPHead.__name__ = WithMLPHead.__qualname__ = base.__name__
    return WithMLPHead
