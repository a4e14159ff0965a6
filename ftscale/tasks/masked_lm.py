"""Masked language modelling: the hidden tokens of a text, by what stands before and behind them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ftscale.base.errors import UserError
from ftscale.base.seeding import derive_seed
from ftscale.config import Config
from ftscale.config.tasks.masked_lm import MaskedLMSettings
from ftscale.data.parts import special_frame
from ftscale.data.sample import Sample
from ftscale.modalities.collate import IGNORED, Layout, collate_tokens, pad_id
from ftscale.modalities.encode import Encoded, encode, length_limit
from ftscale.modalities.text import Text
from ftscale.models.lm_head import lm_loss, lm_target_logits, lm_target_losses
from ftscale.tasks.base import Answer, Evaluator, Pieces, Row, Task, row_numbers
from ftscale.tasks.batch import Batch, Counts, Outputs, Terms
from ftscale.tasks.masks import Masking, units_of
from ftscale.tasks.overlong import is_cut
from ftscale.tasks.rows import text_of, where
from ftscale.tasks.text_fit import text_problems
from ftscale.tasks.token_pieces import marked
from ftscale.tasks.token_sums import TokenRecord, sums_of_samples, token_columns, token_records, token_scores

MASKS = ("[MASK]", "<mask>")
"""How a mask is written for most models."""
MOST_LOSS = 700.0  # of which the exponential is still a number


class MaskedLM(Task):
    """The task of `task: masked_lm`. A target is one token.

    A sample's label says for each token which unit, a word or the token itself, it is hidden with, -100 = never. Which
    units are hidden is drawn when a batch is made: in training by seed, epoch and row, in evaluation by the row alone.
    Labels of a batch stand at the hidden tokens' own places.
    """

    auto_class = "AutoModelForMaskedLM"
    pipeline_tag = "fill-mask"
    modality = Text()
    settings: MaskedLMSettings

    def __init__(self, settings: MaskedLMSettings, processor: Any = None) -> None:
        """Raises UserError: a tokenizer without a mask token, or one that cannot tell words that are asked for."""
        super().__init__(settings, processor)
        if processor is not None:
            _check_processor(settings, processor)
            self.special = frozenset(processor.all_special_ids)
            self.masking = _masking(settings, processor)

    @property
    def by_row(self) -> bool:  # type: ignore[override]
        """Not where texts are joined."""
        return not self.settings.join_texts

    def model_problems(self, config: Config, model_config: Any) -> list[str]:
        """A model that reads from left to right, or writes what it has read."""
        if not (model_config.is_encoder_decoder or model_config.to_dict().get("is_decoder")):
            return []
        kind = "an encoder-decoder" if model_config.is_encoder_decoder else "a decoder"
        return [
            f"task.name = masked_lm needs a model that reads a text from both sides, and model.name = "
            f"{config.model.name!r} is {kind} ({model_config.model_type}); name an encoder, or another task."
        ]

    def fit_problems(self, config: Config, model_config: Any) -> list[str]:
        problems = text_problems(self, config, model_config)
        if self.settings.whole_words and config.batch.unit == "targets":
            problems.append(
                "batch.unit = targets needs to know each row's targets before, and with task.whole_words = true they "
                "are other words, of other lengths, in each epoch; set batch.unit: samples, or whole_words: false."
            )
        return problems

    def prepare(self, rows: Sequence[Row], *, labelled: bool = True) -> list[Sample]:
        """One sample a row; with `join_texts`, blocks of `max_length` tokens of all these rows together.

        Without labels the masks are those of the row.
        """
        limit, texts = length_limit(self.settings.max_length, self.processor), [text_of(row, "text") for row in rows]
        if not labelled:
            encoded = encode(self.processor, texts, limit=limit)
            return [self._to_fill(*parts, limit) for parts in zip(rows, texts, encoded, strict=True)]
        if self.settings.join_texts:
            return self._joined(texts, limit)
        encoded = encode(self.processor, texts, limit=limit, by_word=self.settings.whole_words)
        samples = [self._sample(item.inputs, item.words) for item in encoded]
        for sample, row, item in zip(samples, rows, encoded, strict=True):
            sample.truncated, drop = is_cut(item.length, row, limit=limit, too_long=self.settings.too_long)
            sample.drop = drop or sample.drop
        return samples

    def collate(self, samples: Sequence[Sample], *, layout: Layout, train: bool) -> Batch:
        tokens, fill = [sample.inputs for sample in samples], {"input_ids": pad_id(self.processor), "token_type_ids": 0}
        if samples[0].label is not None:
            fill["labels"] = IGNORED
            tokens = [self._masked(sample, train=train) for sample in samples]
        inputs = collate_tokens(tokens, fill=fill, layout=layout)
        labels = inputs.pop("labels", None)
        return Batch(inputs, row_numbers(samples), labels)

    def count(self, batch: Batch) -> Counts:
        return {"loss": int((batch.labels != IGNORED).sum())}

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        weights = None if batch.weights is None else batch.weights[batch.owners(batch.labels != IGNORED)]
        return {"loss": lm_loss(model, batch.inputs, batch.labels, weights=weights)}

    def target_logits(self, model: nn.Module, batch: Batch) -> Iterator[tuple[Tensor, slice]]:
        return lm_target_logits(model, batch.inputs, batch.labels)

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """With labels, `losses`, `counts`, `correct`: (samples,), sums over each sample's targets.

        Without, `ids`: each sample's tokens; `best`: for each of its masks the likeliest tokens and their
        probabilities; `log_probs`: of a sample without a mask, that of each token while it alone is hidden.
        """
        if batch.labels is not None:
            return sums_of_samples(batch, *lm_target_losses(model, batch.inputs, batch.labels))
        ids = batch.inputs["input_ids"]
        return {
            "ids": [ids[row, span].tolist() for row, span in batch.spans],
            "best": self._best(model, batch),
            "log_probs": self._log_probs(model, batch),
        }

    def evaluator(self) -> Evaluator:
        """Return an evaluator of loss, perplexity and accuracy at the masks."""
        return Evaluator(token_records, token_scores, columns=token_columns)

    def metric_names(self) -> list[str]:
        """Name the metrics that the evaluator gives, by scoring one record made up for it."""
        return list(token_scores([TokenRecord(0.0, 1, 1)]))

    def predictions(self, outputs: Outputs, batch: Batch, *, every: bool = False) -> list[Answer]:
        """The text with its masks filled, and the mean log-probability of these tokens.

        `masks` has for each mask the likeliest tokens. Of a text without a mask the score is the mean log-probability
        of its own tokens, each while it alone is hidden, and `pseudo_perplexity` that as a perplexity (J. Salazar et
        al., Masked Language Model Scoring, 2020).
        """
        parts = zip(outputs["ids"], outputs["best"], outputs["log_probs"], strict=True)
        return [self._answer(*of_sample) for of_sample in parts]

    def answer_names(self, *, every: bool) -> list[str]:
        return ["prediction", "score", "masks", "pseudo_perplexity"]

    def show(self, row: Row, sample: Sample) -> Pieces:
        """The tokens as text, those marked that the first epoch hides."""
        hidden = self._masked(sample, train=True)["labels"]
        return marked(sample.inputs["input_ids"], [label != IGNORED for label in hidden], self.processor)

    # ------------------------------------------------------------ samples

    def _sample(self, inputs: dict[str, list[int]], words: Sequence[int | None]) -> Sample:
        units = units_of(inputs["input_ids"], words, never=self.special)
        number = self.masking.number(len({unit for unit in units if unit != IGNORED}))
        return Sample(
            inputs,
            units,
            cost=len(units),
            counts=None if self.settings.whole_words else {"loss": number},  # words differ in their number of tokens
            drop="" if number else "no_target",
        )

    def _joined(self, texts: Sequence[str], limit: int) -> list[Sample]:
        before, behind = special_frame(self.processor)
        room = limit - len(before) - len(behind)
        if room < 1:
            raise UserError(
                f"task.max_length = {limit} must be more than the {limit - room} special tokens of a sample; raise it."
            )
        ids: list[int] = []
        words: list[int | None] = []
        first = 0  # number of the next text's first word
        encoded = self.processor(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for number, of_text in enumerate(encoded["input_ids"]):
            between = behind[-1:] if ids and of_text else []
            ids += [*between, *of_text]
            if self.settings.whole_words:
                own = [None if word is None else first + word for word in encoded.word_ids(number)]
                words += [*[None] * len(between), *own]
                first = 1 + max((word for word in own if word is not None), default=first - 1)
        blocks = [slice(start, start + room) for start in range(0, len(ids), room)]
        made = []
        for block in blocks:
            around = [[None] * len(part) for part in (before, behind)]
            of_block = [*around[0], *words[block], *around[1]] if words else []
            made.append(self._sample({"input_ids": [*before, *ids[block], *behind]}, of_block))
            made[-1].rows = (0, len(texts))
        return made

    def _to_fill(self, row: Row, text: str, encoded: Encoded, limit: int) -> Sample:
        mask, ids = self.processor.mask_token, encoded.inputs["input_ids"]
        other = next((name for name in MASKS if name in text and name != mask), None)
        if other is not None and mask not in text:
            raise UserError(f"{where(row)}: text has {other}, and a mask of this model is written {mask}; write that.")
        truncated, drop = is_cut(encoded.length, row, limit=limit, too_long=self.settings.too_long)
        if truncated and mask in text and self.processor.mask_token_id not in ids:
            drop = "mask_cut_off"
        return Sample(encoded.inputs, cost=len(ids), counts={"loss": 0}, drop=drop, truncated=truncated)

    def _masked(self, sample: Sample, *, train: bool) -> dict[str, list[int]]:
        """Tokens of a sample as the model reads them, and `labels`."""
        stream = ("mask", sample.epoch, sample.number) if train else ("mask", "evaluation", sample.number)
        seed = derive_seed(sample.seed if train else 0, *stream)
        read, labels = self.masking(sample.inputs["input_ids"], sample.label, seed=seed)
        return {**sample.inputs, "input_ids": read, "labels": labels}

    # ------------------------------------------------------------ answers

    def _best(self, model: nn.Module, batch: Batch) -> list[list[list[tuple[int, float]]]]:
        """For each sample and each of its masks the likeliest tokens with their probabilities."""
        masks = batch.inputs["input_ids"] == self.processor.mask_token_id
        found: list[list[list[tuple[int, float]]]] = [[] for _ in range(len(batch))]
        if not masks.any():
            return found
        owners = batch.owners(masks).tolist()
        places = torch.where(masks, 0, IGNORED)  # a label of any token: its logits alone are wanted
        for logits, of_chunk in lm_target_logits(model, batch.inputs, places):
            top = logits.softmax(dim=-1).topk(min(self.settings.top_k, logits.shape[-1]))
            rows = zip(owners[of_chunk], top.indices.tolist(), top.values.tolist(), strict=True)
            for owner, tokens, chances in rows:
                found[owner].append(list(zip(tokens, chances, strict=True)))
        return found

    def _log_probs(self, model: nn.Module, batch: Batch) -> list[list[float]]:
        """For each sample without a mask the log-probability of each of its tokens, hidden one after the other."""
        ids, mask = batch.inputs["input_ids"], self.processor.mask_token_id
        special = torch.tensor(sorted(self.special), device=ids.device)
        hideable = ~torch.isin(ids, special)
        places: list[list[tuple[int, int]]] = []
        for row, span in batch.spans:
            at = (hideable[row, span].nonzero()[:, 0] + span.start).tolist()
            places.append([] if (ids[row, span] == mask).any() else [(row, place) for place in at])
        found: list[list[float]] = [[] for _ in places]
        for turn in range(max(map(len, places))):
            owners = [number for number, of_sample in enumerate(places) if turn < len(of_sample)]
            rows, columns = zip(*(places[number][turn] for number in owners), strict=True)
            hidden, labels = ids.clone(), torch.full_like(ids, IGNORED)
            labels[rows, columns], hidden[rows, columns] = ids[rows, columns], mask
            losses, _ = lm_target_losses(model, {**batch.inputs, "input_ids": hidden}, labels)
            for number, loss in zip(owners, losses.tolist(), strict=True):
                found[number].append(-loss)
        return found

    def _answer(self, ids: list[int], best: list[list[tuple[int, float]]], log_probs: list[float]) -> Answer:
        first = iter(best)
        filled = [next(first)[0][0] if token == self.processor.mask_token_id else token for token in ids]
        chances = [math.log(max(of_mask[0][1], 1e-30)) for of_mask in best] or log_probs
        score = math.fsum(chances) / len(chances) if chances else None
        alone = score is not None and not best
        return {
            "prediction": self.processor.decode(filled, skip_special_tokens=True),
            "score": score,
            "masks": [self._tokens(of_mask) for of_mask in best],
            "pseudo_perplexity": math.exp(min(-(score or 0.0), MOST_LOSS)) if alone else None,
        }

    def _tokens(self, of_mask: list[tuple[int, float]]) -> list[dict[str, Any]]:
        return [{"token": self.processor.decode([token]), "score": chance} for token, chance in of_mask]


def _check_processor(settings: MaskedLMSettings, processor: Any) -> None:
    name = type(processor).__name__
    if processor.mask_token_id is None:
        raise UserError(
            f"model.processor: {name} of {processor.name_or_path!r} has no mask token, which stands in the place of "
            "what a masked language model is to find; name a model that was trained as one."
        )
    if settings.whole_words and not (processor.is_fast and len(set(processor("a b").word_ids()) - {None}) > 1):
        raise UserError(
            f"task.whole_words = true needs a tokenizer that tells words, and {name} of {processor.name_or_path!r} "
            "does not; set it to false, or name a model with a fast tokenizer (tokenizer.json)."
        )


def _masking(settings: MaskedLMSettings, processor: Any) -> Masking:
    """Random tokens are drawn of all but the special ones."""
    return Masking(
        settings.mask_ratio,
        processor.mask_token_id,
        np.setdiff1d(np.arange(len(processor)), processor.all_special_ids),
        by_mask=settings.mask_replace_ratio,
        by_random=settings.random_replace_ratio,
    )
