"""Embeddings: a vector for each text, near to those of texts that go with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from ftscale.base.errors import UserError
from ftscale.config import Config
from ftscale.config.tasks.embedding import EmbeddingSettings
from ftscale.data.loader import Step
from ftscale.data.missing import is_missing
from ftscale.data.sample import Sample
from ftscale.modalities.collate import Layout, collate_tokens, pad_id
from ftscale.modalities.encode import Encoded, encode, length_limit
from ftscale.modalities.text import Text
from ftscale.tasks import embedding_losses
from ftscale.tasks.base import Answer, Evaluator, Pieces, Row, Task, row_numbers
from ftscale.tasks.batch import Batch, Counts, Outputs, Terms
from ftscale.tasks.context import Context
from ftscale.tasks.embedding_losses import Compared, Loss, compare_all, of_sizes, second_pass
from ftscale.tasks.embedding_model import EXTRAS, Form, form_of, form_problems, write_form
from ftscale.tasks.embedding_scores import (
    Found,
    Kind,
    Record,
    columns_of,
    firsts_of,
    found_of,
    records_of,
    scores_of,
)
from ftscale.tasks.labels import class_name
from ftscale.tasks.overlong import is_cut
from ftscale.tasks.rows import number_of, text_of, where
from ftscale.tasks.sequences import LENGTHS, joined, sequences_of
from ftscale.tasks.states import pooled_tokens
from ftscale.tasks.text_fit import text_problems
from ftscale.tasks.texts import id_of, negatives_of

IDS = "text_hashes"
"""A number for each text, the same for the same: of a sample's inputs, and in a batch's `extra`, padded with 0."""
MOST_REPEATS = 1024
"""Of a row in an optimizer step, that are told apart."""
OVER_ALL = ("infonce", "cosent", "batch_hard_triplet")
"""Losses that compare each sample with others: of the global batch."""
COLUMNS = {
    "infonce": ("anchor", "positive"),
    "triplet": ("anchor", "positive", "negative"),
    "margin_mse": ("anchor", "positive", "negative", "score"),
    "cosent": ("text", "text_pair", "score"),
    "cosine_mse": ("text", "text_pair", "score"),
    "contrastive": ("text", "text_pair", "score"),
    "batch_hard_triplet": ("text", "label"),
}
"""What each loss reads of a row."""
LEAST_TEXTS = {"triplet": 3, "margin_mse": 3, "batch_hard_triplet": 1}
"""Of a row that has a target, where they are not two."""
BEST: dict[Kind, str] = {"documents": "mrr@10", "pairs": "spearman", "classes": "recall@1"}


class Embedding(Task):
    """The task of `task: embedding`. A row is one target.

    A sample is as many sequences as its row has texts, end to end: the anchor, the positive and the negatives; both
    texts of a pair; or a text alone. Labels of a batch: (samples,) float32, the score of a row (1 where it has none),
    or int64, a number of its label.
    """

    auto_class = "AutoModel"
    pipeline_tag = "sentence-similarity"
    peft_type = "FEATURE_EXTRACTION"
    modality = Text()
    unused = ("pooler",)
    extras = EXTRAS
    settings: EmbeddingSettings

    def __init__(self, settings: EmbeddingSettings, processor: Any = None) -> None:
        super().__init__(settings, processor)
        self.form: Form = form_of(settings, getattr(processor, "name_or_path", None))

    @property
    def best_metric(self) -> str:
        return BEST[self._kind]

    def fit(self, rows: Iterable[Row]) -> dict[str, Any]:
        """The loss, by the columns of the first row."""
        if self.settings.loss is not None:
            return {}
        first = next(iter(rows), {})
        return {
            "loss": "infonce" if "positive" in first else "cosent" if "text_pair" in first else "batch_hard_triplet"
        }

    def model_problems(self, config: Config, model_config: Any) -> list[str]:
        """Modules of sentence-transformers that cannot be had here, and sizes that the model does not have."""
        problems, size = form_problems(self.settings, config.model.name), model_config.get_text_config().hidden_size
        if too_large := [wanted for wanted in self.settings.matryoshka if wanted > size]:
            problems.append(
                f"task.matryoshka = {list(self.settings.matryoshka)} has sizes above the {size} of the model's "
                f"vectors; leave out {', '.join(map(str, too_large))}."
            )
        return problems

    def fit_problems(self, config: Config, model_config: Any) -> list[str]:
        return text_problems(self, config, model_config)

    # ------------------------------------------------------------ samples and batches

    def prepare(self, rows: Sequence[Row], *, labelled: bool = True) -> list[Sample]:
        texts = [self._texts(row, labelled=labelled) for row in rows]
        limit = length_limit(self.settings.max_length, self.processor)
        encoded = iter(encode(self.processor, [text for of_row in texts for text in of_row], limit=limit))
        return [
            self._sample(row, of_row, [next(encoded) for _ in of_row], labelled=labelled)
            for row, of_row in zip(rows, texts, strict=True)
        ]

    def collate(self, samples: Sequence[Sample], *, layout: Layout, train: bool) -> Batch:
        """A text that stands in it several times is read once, and dropped by itself and not by its rows."""
        fill = {"input_ids": pad_id(self.processor), "token_type_ids": 0}
        keys = [key for sample in samples for key in _keys_of(sample)]
        texts = dict(zip(keys, (text for sample in samples for text in sequences_of(sample)), strict=True))
        order = sorted(texts, key=lambda key: -len(texts[key]["input_ids"]))  # attention takes equal lengths together
        places = {key: place for place, key in enumerate(order)}
        labels = None
        if samples[0].label is not None:
            kind = torch.int64 if self._kind == "classes" else torch.float32
            labels = torch.tensor([sample.label for sample in samples], dtype=kind)
        ids = [torch.tensor(sample.inputs[IDS], dtype=torch.int64) for sample in samples]
        return Batch(
            collate_tokens([texts[key] for key in order], fill=fill, layout=layout),
            row_numbers(samples),
            labels,
            extra={IDS: pad_sequence(ids, batch_first=True)},
            sequences=[len(sample.inputs[LENGTHS]) for sample in samples],
            reads=torch.tensor([places[key] for key in keys]),
            drawn_by=torch.tensor(order),
        )

    def count(self, batch: Batch) -> Counts:
        return {"loss": sum(number >= self._least_texts for number in batch.sequences)}

    # ------------------------------------------------------------ the model's work

    @property
    def acts_before_step(self) -> bool:
        """Where samples are compared with others, which are those of the global batch."""
        return self._loss_name in OVER_ALL

    def before_step(self, step: Step, context: Context) -> Step:
        if not self.acts_before_step:
            return step
        return compare_all(step, context, vectors_of=self._vectors, compared_of=self._compared, loss=self._loss())

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        """Of a batch that was not compared with others before, its own samples are compared."""
        vectors = self._vectors(model, batch)
        if embedding_losses.GRADIENT in batch.extra:
            return {"loss": second_pass(batch, vectors)}
        return {"loss": self._loss()(self._compared(batch, vectors)).sum()}

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The vector of each sample's first text."""
        return self._vectors(model, batch)[list(accumulate(batch.sequences[:-1], initial=0))]

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """`vectors`: (sequences, dim) float32; with labels also `losses`: (samples,), of this batch by itself."""
        vectors = self._vectors(model, batch)
        if batch.labels is None:
            return {"vectors": vectors}
        return {"vectors": vectors, "losses": self._loss()(self._compared(batch, vectors))}

    def _vectors(self, model: nn.Module, batch: Batch) -> Tensor:
        states = model(**batch.inputs).last_hidden_state
        vectors = pooled_tokens(states, batch.inputs, self.form.pooling)
        vectors = functional.normalize(vectors, dim=-1) if self.form.normalize else vectors
        return vectors[batch.reads]

    def _compared(self, batch: Batch, vectors: Tensor) -> Compared:
        ids = [of_row[:number] for of_row, number in zip(batch.extra[IDS], batch.sequences, strict=True)]
        weights = vectors.new_ones(len(batch)) if batch.weights is None else batch.weights
        repeats = 0 if batch.repeats is None else batch.repeats
        keys = batch.rows * MOST_REPEATS + repeats
        return Compared(vectors, batch.sequences, torch.cat(ids), batch.labels, weights, keys)

    def _loss(self) -> Loss:
        settings = self.settings
        temperature, margin = {"temperature": settings.temperature}, {"margin": settings.margin}
        options: dict[str, Any] = {
            "infonce": {**temperature, "symmetric": settings.symmetric},
            "triplet": margin,
            "cosent": temperature,
            "contrastive": margin,
            "batch_hard_triplet": margin,
        }
        name = self._loss_name
        return of_sizes(partial(getattr(embedding_losses, name), **options.get(name, {})), settings.matryoshka)

    # ------------------------------------------------------------ scores and answers

    def evaluator(self) -> Evaluator:
        """Return an evaluator of the loss, over blocks of rows in order, and of how well texts are found."""
        return Evaluator(
            _records,
            scores_of,
            join=partial(found_of, kind=self._kind, loss=self._loss()),
            firsts=partial(firsts_of, kind=self._kind),
            columns=columns_of,
        )

    def metric_names(self) -> list[str]:
        """Name the metrics that the evaluator gives, by scoring one record made up for it."""
        return list(scores_of([Found.made_up(self._kind)]))

    def predictions(self, outputs: Outputs, batch: Batch, *, every: bool = False) -> list[Answer]:
        """The vector, as a list of numbers; there is no score."""
        return [{"prediction": vector, "score": None} for vector in outputs["vectors"].tolist()]

    def show(self, row: Row, sample: Sample) -> Pieces:
        """The texts as their tokens, a line each, what belongs to the first one marked; or a text and its label."""
        texts = [self.processor.decode(sequence["input_ids"]) for sequence in sequences_of(sample)]
        if self._kind == "classes":
            return [(texts[0], False), ("\n", False), (str(row.get("label", "")), True)]
        lines = [[(text, place == 1), ("\n", False)] for place, text in enumerate(texts)]
        return [piece for line in lines for piece in line][:-1]

    def save_extras(self, folder: Path) -> None:
        """What sentence-transformers reads besides the model."""
        write_form(folder, self.form, max_length=length_limit(self.settings.max_length, self.processor))

    # ------------------------------------------------------------ rows

    @property
    def _loss_name(self) -> str:
        assert self.settings.loss is not None, "the training rows tell the loss: fit first"
        return self.settings.loss

    @property
    def _kind(self) -> Kind:
        columns = COLUMNS[self._loss_name]
        return "documents" if "positive" in columns else "pairs" if "text_pair" in columns else "classes"

    @property
    def _least_texts(self) -> int:
        return LEAST_TEXTS.get(self._loss_name, 2)

    def _texts(self, row: Row, *, labelled: bool) -> list[str]:
        """The texts of a row as the model reads them; to predict on, the first alone."""
        query, document = self.form.query_prompt, self.form.document_prompt
        if not labelled:
            return [query + text_of(row, "anchor") if "anchor" in row else document + text_of(row, "text")]
        columns = COLUMNS[self._loss_name]
        if lacking := [name for name in columns if name not in row and name != "anchor"]:
            raise UserError(
                f"{where(row)}: task.loss = {self._loss_name} reads {', '.join(columns)}, and the row has no "
                f"{lacking[0]}; name it in `columns`, or set another task.loss."
            )
        if columns[0] == "text":
            return [document + text_of(row, name) for name in columns if name in ("text", "text_pair")]
        positive = document + text_of(row, "positive")
        if is_missing(row.get("anchor")) or self._is_wrong(row):  # a text that others are compared with
            return [positive]
        return [query + text_of(row, "anchor"), positive, *(document + text for text in negatives_of(row))]

    def _is_wrong(self, row: Row) -> bool:
        """Whether a judgement says that the text is not right for its anchor; the score of margin_mse is a margin."""
        judged = self._loss_name != "margin_mse" and not is_missing(row.get("score"))
        return judged and number_of(row, "score") <= 0

    def _sample(self, row: Row, texts: Sequence[str], encoded: Sequence[Encoded], *, labelled: bool) -> Sample:
        limit = length_limit(self.settings.max_length, self.processor)
        longest = max(item.length for item in encoded)
        truncated, drop = is_cut(longest, row, limit=limit, too_long=self.settings.too_long)
        inputs = joined([item.inputs for item in encoded])
        return Sample(
            inputs | {IDS: [id_of(text) for text in texts]},
            self._label(row) if labelled else None,
            cost=len(inputs["input_ids"]),
            counts={"loss": int(labelled and len(texts) >= self._least_texts)},
            drop=drop,
            truncated=truncated,
        )

    def _label(self, row: Row) -> float | int:
        if self._kind == "classes":
            return id_of(class_name(row, "label"))
        return 1.0 if is_missing(row.get("score")) else number_of(row, "score")


def _keys_of(sample: Sample) -> list[tuple[int, int]]:
    """What tells each of its texts from others: equal texts of two rows are one, an anchor and what belongs to it two.

    So is a row that stands in the step once more. The numbers are those that dropout draws by.
    """
    ids = sample.inputs[IDS]
    return [(number ^ (place == 0 and len(ids) > 1), sample.repeat) for place, number in enumerate(ids)]


def _records(outputs: Outputs, batch: Batch) -> list[Record]:
    return records_of(outputs, batch.extra[IDS], batch.labels, batch.sequences)
