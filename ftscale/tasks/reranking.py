"""Reranking: how well each of several texts answers a query, which the model reads together with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from ftscale.base.errors import UserError
from ftscale.config import Config
from ftscale.config.tasks.reranking import RerankingSettings
from ftscale.data.sample import Sample
from ftscale.modalities.collate import Layout, collate_tokens, pad_id
from ftscale.modalities.encode import Encoded, encode, length_limit
from ftscale.modalities.text import Text
from ftscale.tasks.base import Answer, Evaluator, Pieces, Row, Task, row_numbers, weighted
from ftscale.tasks.batch import Batch, Counts, Outputs, Terms
from ftscale.tasks.overlong import is_cut
from ftscale.tasks.ranking_scores import Ranked, columns_of_lists, firsts_of_queries, ranked, scores_of_lists
from ftscale.tasks.rows import LEAVE_OUT, number_of, text_of, where
from ftscale.tasks.sequences import LENGTHS, joined, sequences_of
from ftscale.tasks.text_fit import text_problems
from ftscale.tasks.texts import id_of, negatives_of

HASHES = "text_hashes"
"""Of a sample's inputs: a number for its query, and one for each of its texts."""
NO_TEXT = torch.finfo(torch.float32).min
"""The logit where a sample has fewer texts than another."""


class Reranking(Task):
    """The task of `task: reranking`. A target is a row (listwise), or a query with a text (pointwise).

    A sample is as many sequences as its row has texts, end to end: the query with each. Labels of a batch: (samples,
    most texts) float32, how right each text is; a sample's note is the hashes of its query and texts.
    """

    auto_class = "AutoModelForSequenceClassification"
    pipeline_tag = "text-ranking"
    peft_type = "SEQ_CLS"
    modality = Text()
    pools = True
    settings: RerankingSettings

    @property
    def best_metric(self) -> str:
        return "mrr@10"

    def fit(self, rows: Iterable[Row]) -> dict[str, Any]:
        """The loss, by the columns of the first row."""
        if self.settings.loss is not None:
            return {}
        return {"loss": "pointwise" if "text_pair" in next(iter(rows), {}) else "listwise"}

    def model_settings(self) -> dict[str, Any]:
        """A number for each sequence."""
        return {"num_labels": 1}

    def fit_problems(self, config: Config, model_config: Any) -> list[str]:
        return text_problems(self, config, model_config)

    def prepare(self, rows: Sequence[Row], *, labelled: bool = True) -> list[Sample]:
        parts = [_parts(row, labelled=labelled) for row in rows]
        queries = [query for query, texts in parts for _ in texts]
        texts = [text for _, of_row in parts for text in of_row]
        limit = length_limit(self.settings.max_length, self.processor)
        encoded = iter(encode(self.processor, queries, pairs=texts, limit=limit))
        return [
            self._sample(row, query, of_row, [next(encoded) for _ in of_row], labelled=labelled)
            for row, (query, of_row) in zip(rows, parts, strict=True)
        ]

    def collate(self, samples: Sequence[Sample], *, layout: Layout, train: bool) -> Batch:
        fill = {"input_ids": pad_id(self.processor), "token_type_ids": 0}
        sequences = [sequence for sample in samples for sequence in sequences_of(sample)]
        labels = None
        if samples[0].label is not None:
            labels = pad_sequence([torch.tensor(sample.label) for sample in samples], batch_first=True)
        return Batch(
            collate_tokens(sequences, fill=fill, layout=layout),
            row_numbers(samples),
            labels,
            notes=[] if train else [sample.inputs[HASHES] for sample in samples],
            sequences=[len(sample.inputs[LENGTHS]) for sample in samples],
        )

    def count(self, batch: Batch) -> Counts:
        return {"loss": sum(map(self._targets, batch.sequences))}

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        return {"loss": weighted(self._losses(_logits(model, batch), batch), batch)}

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """`logits`: (samples, most texts) float32; with labels also `losses`: (samples,), sums over its targets."""
        logits = _logits(model, batch)
        return {"logits": logits} | ({} if batch.labels is None else {"losses": self._losses(logits, batch)})

    def evaluator(self) -> Evaluator:
        """Return an evaluator of the loss, and of the order of each query's texts."""
        return Evaluator(
            self._records, scores_of_lists, join=ranked, firsts=firsts_of_queries, columns=columns_of_lists
        )

    def metric_names(self) -> list[str]:
        """Name the metrics that the evaluator gives, by scoring records made up for it."""
        return list(scores_of_lists(ranked([Ranked(0, (0, 1), (1.0, 0.0), (1.0, 0.0), 0.0, 1)])))

    def predictions(self, outputs: Outputs, batch: Batch, *, every: bool = False) -> list[Answer]:
        """How likely the text is right, from 0 to 1; there is no other score."""
        return [{"prediction": value, "score": None} for value in outputs["logits"][:, 0].sigmoid().tolist()]

    def show(self, row: Row, sample: Sample) -> Pieces:
        """The sequences as their tokens, a line each, those with a right text marked."""
        texts = [self.processor.decode(sequence["input_ids"]) for sequence in sequences_of(sample)]
        lines = [[(text, right > 0), ("\n", False)] for text, right in zip(texts, sample.label, strict=True)]
        return [piece for line in lines for piece in line][:-1]

    # ------------------------------------------------------------ parts

    @property
    def _is_listwise(self) -> bool:
        assert self.settings.loss is not None, "the training rows tell the loss: fit first"
        return self.settings.loss == "listwise"

    def _targets(self, texts: int) -> int:
        """Of a sample with so many texts; one alone has no order."""
        return int(texts > 1) if self._is_listwise else texts

    def _losses(self, logits: Tensor, batch: Batch) -> Tensor:
        if self._is_listwise:  # of one text it is 0
            return functional.cross_entropy(logits, logits.new_zeros(len(batch), dtype=torch.long), reduction="none")
        there = logits > NO_TEXT
        each = functional.binary_cross_entropy_with_logits(logits.where(there, 0.0), batch.labels, reduction="none")
        return each.where(there, 0.0).sum(dim=1)

    def _records(self, outputs: Outputs, batch: Batch) -> list[Ranked]:
        records = []
        for row, number in enumerate(batch.sequences):
            query, *texts = batch.notes[row]
            logits, labels = outputs["logits"][row, :number].tolist(), batch.labels[row, :number].tolist()
            targets = self._targets(number)
            loss = float(outputs["losses"][row])
            records.append(Ranked(query, tuple(texts), tuple(logits), tuple(labels), loss, targets))
        return records

    def _sample(
        self, row: Row, query: str, texts: Sequence[str], encoded: Sequence[Encoded], *, labelled: bool
    ) -> Sample:
        limit = length_limit(self.settings.max_length, self.processor)
        longest = max(item.length for item in encoded)
        truncated, drop = is_cut(longest, row, limit=limit, too_long=self.settings.too_long)
        inputs = joined([item.inputs for item in encoded])
        targets = self._targets(len(texts)) if labelled else 0
        return Sample(
            inputs | {HASHES: [id_of(text) for text in (query, *texts)]},
            self._label(row, len(texts)) if labelled else None,
            cost=len(inputs["input_ids"]),
            counts={"loss": targets},
            drop=drop or ("no_target" if labelled and not targets else ""),
            truncated=truncated,
        )

    def _label(self, row: Row, number: int) -> list[float]:
        if "text_pair" not in row:
            return [1.0] + [0.0] * (number - 1)
        score = number_of(row, "score")
        if not 0 <= score <= 1:
            raise UserError(
                f"{where(row)}: score = {score:g} must be from 0 to 1, as a share of the truth; divide all by the "
                f"largest, or {LEAVE_OUT}."
            )
        return [score]


def _parts(row: Row, *, labelled: bool) -> tuple[str, list[str]]:
    """The query of a row and its texts, the right one first."""
    if "text_pair" in row:
        return text_of(row, "text"), [text_of(row, "text_pair")]
    return text_of(row, "anchor"), [text_of(row, "positive"), *(negatives_of(row) if labelled else [])]


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """(samples, most texts) float32."""
    logits = model(**batch.inputs).logits[:, 0].float()
    return pad_sequence(logits.split(batch.sequences), batch_first=True, padding_value=NO_TEXT)
