"""A contrastive loss over the global batch: each sample is compared with all others, on whatever rank they are."""

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from ftscale.config.own_method import OwnMethodSettings
from ftscale.methods.base import Context, Method
from ftscale.tasks.batch import Batch


class ContrastSettings(OwnMethodSettings):
    """Samples of a class are to lie closer together than samples of two."""

    needs: ClassVar = frozenset({"embeds", "brings_head"})
    name: Literal["contrast"] = "contrast"
    """The method."""
    temperature: PositiveFloat = 0.5
    """What distances are divided by."""


class Contrast(Method):
    """In two passes: embed all, take the gradient of the loss by the embeddings, then go backward from there."""

    terms = {"contrast": 1.0}

    def count(self, batch: Batch) -> dict[str, float]:
        return {"contrast": len(batch)}

    def before_step(self, step: Any, context: Context) -> Any:
        batches = [batch.to(context.device) for batch, _ in step.micro_batches]
        embedded = [context.run(lambda model, batch=batch: self.inner.embed(model, batch)) for batch in batches]
        real = [number for number, (_, counts) in enumerate(step.micro_batches) if counts]
        nothing = [embedded[0][:0]]  # of a rank without samples
        embeddings, place = context.gather(torch.cat(nothing + [embedded[number] for number in real]))
        labels, _ = context.gather(torch.cat([batches[0].labels[:0]] + [batches[number].labels for number in real]))
        losses, gradient = losses_and_gradient(embeddings, labels, self.own.temperature)
        losses, gradient = losses[place], gradient[place]
        micro_batches, start = [], 0
        for batch, (_, counts) in zip(batches, step.micro_batches, strict=True):
            extra = {"gradient": torch.zeros_like(gradient[:1]).expand(len(batch), -1), "loss": losses.new_zeros(())}
            if counts:
                part = slice(start, start := start + len(batch))
                extra = {"gradient": gradient[part], "loss": losses[part]}
            micro_batches.append((replace(batch, extra=extra), counts))
        return replace(step, micro_batches=micro_batches)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        backward = (self.inner.embed(model, batch) * batch.extra["gradient"]).sum()
        return {"contrast": batch.extra["loss"].sum() + backward - backward.detach()}


def losses_and_gradient(embeddings: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The loss of each sample, and the gradient of their sum by the embeddings."""
    with torch.enable_grad():
        embeddings = embeddings.detach().requires_grad_()
        alike = labels[:, None] == labels
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        distances = (embeddings[:, None] - embeddings).square().mean(dim=-1) / temperature
        near = (-distances).masked_fill(itself, -torch.inf)
        losses = near.logsumexp(dim=1) - near.masked_fill(~alike, -torch.inf).logsumexp(dim=1)
        (gradient,) = torch.autograd.grad(losses.sum(), embeddings)
    return losses.detach(), gradient
