"""What happens between the backward pass and the update, whatever is learned."""

from __future__ import annotations

from typing import Any


class GradientRule:
    """Moments of an optimizer step at which somebody looks at the gradients; nothing, unless a subclass says otherwise.

    An adapter brings one (models/adapt.py: AdaLoRA) or a method does; a run has one of them. It needs gradients on the
    weights, as one process and DDP have them. `step` counts optimizer steps from 1, those that are dropped too.
    """

    def before_step(self, *, step: int) -> None:
        """Called before the first forward of a step."""

    def after_backward(self, *, step: int) -> None:
        """Called when gradients are whole, the same on all ranks, before they are clipped; may change them in place.

        They may be not finite: the step is dropped then. What is to be learned of them is learned in `after_update`.
        """

    def after_update(self, *, step: int) -> None:
        """Called when the weights are new, while the gradients are still there; not for a step that is dropped."""

    def state_dict(self) -> dict[str, Any] | None:
        """What it has learned, for a checkpoint, the same on all ranks: tensors and plain values; None = nothing."""
        return None

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Bring back what `state_dict` gave; None = a checkpoint holds nothing of it."""
