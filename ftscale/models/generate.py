"""Generation as a run asks for it: one text a row, in the run's form and length, and the probability of each token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from ftscale.base.errors import UserError, unknown_name
from ftscale.base.logs import log
from ftscale.config.tasks.base import GenerationSettings
from ftscale.models.lengths import position_tables
from ftscale.models.probing import transformers_model

OBEYED: dict[str, Any] = {
    "min_length": 0,
    "min_new_tokens": None,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "exponential_decay_length_penalty": None,
    "remove_invalid_values": False,
    "length_penalty": 1.0,
    "early_stopping": False,
}
"""What is taken over from a model's own generation config, with the values that change nothing: which tokens may
follow. Number, form and length of the texts are the run's; sampling is off."""
OF_BEAMS = ("length_penalty", "early_stopping")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def check_options(settings: GenerationSettings) -> None:
    """Raise UserError for options that are not among those that a run obeys."""
    if unknown := [name for name in settings.options if name not in OBEYED]:
        raise UserError(*(unknown_name("task.generate.options", name, OBEYED) for name in unknown))


def obeyed(own: GenerationConfig, settings: GenerationSettings) -> dict[str, Any]:
    """What the model's generation config and the run's options change about which token may follow."""
    values = {name: getattr(own, name) for name in OBEYED} | settings.options
    beams = settings.num_beams > 1
    return {
        name: value
        for name, value in values.items()
        if value not in (None, OBEYED[name], []) and (beams or name not in OF_BEAMS)
    }


def generate(
    model: nn.Module,
    inputs: dict[str, Tensor],
    settings: GenerationSettings,
    *,
    scored: bool,
    most: int | None = None,
    **tokens: Any,
) -> tuple[Tensor, Tensor | None]:
    """Generate for each row of `inputs`: (rows, longest) int64, the new tokens alone, padded after the one that ended.

    `most`: new tokens, where fewer than the settings say; `tokens`: other special tokens than the model's own, e.g.
    `eos_token_id`. `scored`: also the log-probability that each token had when it was chosen, after all that the
    generation config changes, (rows, longest) float32; a forced token's is 0.
    """
    inner = transformers_model(model)
    asked = _asked(inner, settings, most=most, tokens=tokens)
    start = 1 if inner.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    chosen = _Chosen()
    with _generating_as(inner, asked):
        watched = scored and asked.num_beams == 1
        sequences = model.generate(**inputs, logits_processor=LogitsProcessorList([chosen] if watched else []))
        written = sequences[:, start:]
        if not scored:
            return written, None
        if not watched:  # of beams, once more along the texts that were found
            chosen = _Chosen(along=written)
            asked.num_beams, asked.early_stopping, asked.length_penalty = 1, None, None
            model.generate(**inputs, logits_processor=LogitsProcessorList([chosen]))
    return written, torch.stack(chosen.steps, dim=1)[:, : written.shape[1]]


def mend_generation_config(model: PreTrainedModel) -> None:
    """Leave out of a generation config what transformers would refuse to save, after all the training.

    E.g. `num_return_sequences: 2` without beams, or a temperature without sampling (Llama 2's own file).
    """
    if not model.can_generate():
        return
    own = model.generation_config
    for names in ((*OBEYED, *TOKENS), TOKENS):
        try:
            model.generation_config.validate(strict=True)
            return
        except ValueError as error:
            values = {name: getattr(own, name) for name in names}
            model.generation_config = GenerationConfig(
                **{key: item for key, item in values.items() if item is not None}
            )
            log.warning("the model's generation config cannot be saved (%s): kept are %s", error, ", ".join(names))


def mean_until_end(log_probabilities: Tensor, written: Tensor, ends: Sequence[int]) -> list[float | None]:
    """Return each row's mean over its tokens up to the first that ends it; None where there are none."""
    is_end = torch.isin(written, torch.tensor(list(ends), dtype=written.dtype, device=written.device))
    kept = (is_end.cumsum(dim=1) - is_end.long() == 0).to(log_probabilities.dtype)
    sums, counts = (log_probabilities * kept).sum(dim=1).tolist(), kept.sum(dim=1).tolist()
    return [total / count if count else None for total, count in zip(sums, counts, strict=True)]


def end_ids(model: nn.Module) -> list[int]:
    """The tokens that end a text by the model's own generation config."""
    own = transformers_model(model).generation_config.eos_token_id
    return list(own) if isinstance(own, (list, tuple)) else [] if own is None else [own]


class _Chosen(LogitsProcessor):
    """Keeps the log-probability of the token that each step chooses: the likeliest, or the next one of `along`."""

    def __init__(self, along: Tensor | None = None) -> None:
        self.along = along
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        found = scores.float().log_softmax(dim=-1)
        if self.along is None:
            self.steps.append(found.max(dim=-1).values)
            return scores
        tokens = self.along[:, min(len(self.steps), self.along.shape[1] - 1), None]
        self.steps.append(found.gather(1, tokens)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, 0.0)


def _asked(inner: Any, settings: GenerationSettings, *, most: int | None, tokens: dict[str, Any]) -> GenerationConfig:
    own = inner.generation_config
    tables = position_tables(inner)
    written = [rows for name, rows in tables.items() if inner.config.is_encoder_decoder and "decoder" in name]
    return GenerationConfig(
        **{name: getattr(own, name) for name in TOKENS} | tokens,
        **obeyed(own, settings),
        max_new_tokens=max(min([settings.max_new_tokens, *written, *([] if most is None else [most])]), 1),
        num_beams=settings.num_beams,
        num_return_sequences=1,
        do_sample=False,
        use_cache=True,
    )


@contextmanager
def _generating_as(inner: Any, config: GenerationConfig) -> Iterator[None]:
    """The model's own config is put back after: transformers fills what an argument leaves open from it."""
    own, inner.generation_config = inner.generation_config, config
    try:
        yield
    finally:
        inner.generation_config = own
