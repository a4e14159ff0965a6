"""How dropout draws, by row or by process: as the configuration asks, and as a probe finds that the model allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ftscale.base.errors import UserError
from ftscale.base.logs import log
from ftscale.config import Config
from ftscale.config.own_task import OwnTaskSettings
from ftscale.distributed.process_state import random_state
from ftscale.methods.base import Method, undisturbed
from ftscale.modalities.collate import Layout
from ftscale.models.dropout import use_row_dropout
from ftscale.models.freeze import set_training_mode
from ftscale.models.masks import Masks
from ftscale.models.probing import (
    REFUSALS,
    flat_rows,
    logits_of,
    padded_rows,
    probe_rows,
    relative_difference,
    rounding_of,
    transformers_model,
)

Mode = Literal["auto", "by_row", "by_process"]
TARGET_LENGTH = 4
"""Tokens of a decoder in a probe."""


def choose_dropout(
    model: nn.Module,
    config: Config,
    task: Method,
    *,
    wanted: Mode,
    layout: Layout,
    device: str,
    probed: Callable[[], nn.Module] | None = None,
) -> Masks | None:
    """Settle how dropout draws, and prepare the model for it; None = by process, as torch does, or not at all.

    Call it on the bare or PEFT-wrapped model, when it is prepared for its layout. `wanted` is `train.dropout`, or how a
    resumed run began; `device`: its kind. `probed`: makes a model of the same architecture to try out instead, padded.

    Raises UserError where dropout by row is asked for and impossible.
    """
    if wanted == "by_process" or (wanted == "auto" and device != "cpu"):
        return None
    trial = _Trial(model, task, layout) if probed is None else _Trial(probed(), task, "padded")
    if not (trial.draws() or (probed is not None and _has_dropout(model))):
        return None
    problem = _known_problem(model, config, task, wanted=wanted) or trial.why_not_by_row(seed=config.seed)
    if problem and wanted == "by_row":
        raise UserError(f"train.dropout = by_row cannot be used: {problem}; set train.dropout: auto or by_process.")
    if problem:
        log.info("dropout draws by process: %s", problem)
        return None
    masks = Masks(config.seed)
    use_row_dropout(model, masks)
    return masks


def _has_dropout(model: nn.Module) -> bool:
    return any(isinstance(part, nn.Dropout) and part.p for part in model.modules())


def _known_problem(model: nn.Module, config: Config, task: Method, *, wanted: Mode) -> str | None:
    if task.says("loss") or task.says("before_step"):
        return f"method.name = {config.method.name} runs the model in its own way"
    if wanted == "auto" and isinstance(config.task, OwnTaskSettings):
        return "a task of your own may run the model in its own way (where it does not: train.dropout: by_row)"
    head = transformers_model(model).get_output_embeddings()
    if head is not None and _has_dropout(head):
        return "there is dropout in the output head, which sees chosen tokens alone"
    return None


class _Trial:
    """A few rows that are run through a model in training mode; the model is left as it was."""

    def __init__(self, model: nn.Module, task: Method, layout: Layout) -> None:
        self.model = model
        self.inner = transformers_model(model)
        self.modality = task.modality
        self.by_token = layout == "flat" and not task.pools
        self.layout = layout

    @cached_property
    def rows(self) -> list[Any]:
        """Token ids; of another modality, inputs (1, ...) by name."""
        if self.modality.in_tokens:
            return probe_rows(self.inner)
        inputs = self.modality.probe(self.inner.config)
        return [{name: value[row : row + 1] for name, value in inputs.items()} for row in range(2)]

    def draws(self) -> bool:
        """Whether a generator is asked for anything."""
        try:
            with undisturbed(self.model):
                before = random_state()
                self._run(self.rows)
                return not _same(before, random_state())
        except REFUSALS:  # which the next trial tells
            return True

    def why_not_by_row(self, *, seed: int) -> str | None:
        """Why the model's dropouts cannot all draw by row, or None where they can.

        Rows together and one by one must come to the same up to rounding, and no generator may be asked: by what is no
        dropout (LayerDrop, DropPath, the jitter of a router), or by a dropout that is not reached.
        """
        name, masks = type(self.inner).__name__, Masks(seed)
        undo = use_row_dropout(self.model, masks)
        try:
            with undisturbed(self.model):
                before = random_state()
                whole = self._run(self.rows, masks, list(range(len(self.rows))))
                parts = [self._run([row], masks, [number]) for number, row in enumerate(self.rows)]
                drawn = not _same(before, random_state())
        except REFUSALS as error:
            return f"of {name}, {str(error).splitlines()[0][:200] or type(error)}"
        finally:
            undo()
        if drawn:
            return f"{name} draws random numbers in places that are not known"
        difference = self._difference(whole, parts)
        if difference < rounding_of(self.inner.dtype):  # false for NaN
            return None
        return f"{name} gives other outputs for rows together than one by one (relative difference {difference:.1e})"

    @torch.no_grad()
    def _run(self, rows: list[Any], masks: Masks | None = None, numbers: Sequence[int] = ()) -> Tensor:
        """Logits (rows, ...), or of flat rows (1, tokens, classes), in training mode."""
        set_training_mode(self.model)
        for part in self.model.modules():
            if isinstance(part, nn.modules.batchnorm._NormBase):
                part.eval()  # in training, a row's outputs depend on the others
        inputs = self._inputs(rows)
        if masks is not None:
            numbered = torch.tensor(numbers, device=self.inner.device)
            masks.enter(numbered, repeats=None, bounds=inputs.get("cu_seq_lens_q"))
        return logits_of(self.model(**inputs)).float()

    def _inputs(self, rows: list[Any]) -> dict[str, Any]:
        if not self.modality.in_tokens:
            made = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
            return {
                name: value.to(self.inner.device, self.inner.dtype if value.is_floating_point() else value.dtype)
                for name, value in made.items()
            }
        if self.layout == "flat":
            return flat_rows(rows, self.inner)
        inputs = padded_rows(rows, self.inner)
        if self.inner.config.is_encoder_decoder:
            targets = torch.stack([row.repeat(TARGET_LENGTH)[:TARGET_LENGTH] for row in rows])
            inputs["decoder_input_ids"] = targets.to(self.inner.device)
        return inputs

    def _difference(self, whole: Tensor, parts: list[Tensor]) -> float:
        """Relative; padding is left out."""
        if self.by_token:
            pairs = [(whole, torch.cat(parts, dim=1))]
        else:
            pairs = [(whole[row][tuple(map(slice, part.shape[1:]))], part[0]) for row, part in enumerate(parts)]
        # a head of zeros has nothing to be relative to
        return max(0.0 if torch.equal(one, other) else relative_difference(one, other) for one, other in pairs)


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two states of the random generators are the same."""
    return (
        one["python"] == other["python"]
        and all(np.array_equal(a, b) for a, b in zip(one["numpy"], other["numpy"], strict=True))
        and torch.equal(one["torch"], other["torch"])
        and all(torch.equal(a, b) for a, b in zip(one["cuda"], other["cuda"], strict=True))
    )
