"""The longest sample, the texts that evaluation writes, and the metric that chooses the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ftscale.data.sample import Sample
from ftscale.init.choose import positions_of
from ftscale.init.columns import Rows
from ftscale.init.draft import Draft
from ftscale.init.language import Language
from ftscale.init.lengths import READ, WRITTEN, Lengths, lengths_of, of_tokens, texts_of
from ftscale.init.look import Look
from ftscale.init.models import Known

MORE = 512
"""Longest input in tokens where the model has no limit, or a far one."""
NO_LENGTH = ("embedding", "image_classification", "multiple_choice", "reranking")
"""Tasks whose rows are no tokens, or several sequences that may be as long as the model takes."""
LONGEST = {"causal_lm": 2048}
LONG = 2048
"""Longest input of an encoder that was chosen for long rows."""
WINDOW = 256
"""Tokens of a question with a part of its context."""
JOINED = 512
"""Tokens of a sample of joined lines."""


def put_length(draft: Draft, found: Look, rows: Rows, known: Known | None, language: Language) -> None:
    """Set a length that nearly all rows fit into, by their words or characters."""
    if rows.task in NO_LENGTH:
        return
    positions = positions_of(draft.value("model.name"), known)
    if draft.value("task.join_texts"):
        draft.put("task.max_length", min(JOINED, positions), "tokens of a sample of joined lines")
        return
    if rows.task == "question_answering":
        _put_windows(draft, positions)
        return
    one_text = rows.task != "seq2seq"
    read = lengths_of(
        texts_of(found, rows.columns, (*READ, *WRITTEN) if one_text else READ), english=language.is_english
    )
    if read is None:
        return
    most = min(LONGEST.get(rows.task, MORE), positions)
    if known is not None and known.positions and known.positions > MORE and read.p95 > MORE:
        most = min(known.positions, max(most, LONG))
    target = None if one_text else lengths_of(texts_of(found, rows.columns, WRITTEN), english=language.is_english)
    _put_lengths(draft, rows, read, target, most=most, by="about {} tokens or fewer, by their words")


def put_measured(draft: Draft, rows: Rows, samples: Sequence[Sample]) -> None:
    """Set the lengths anew by rows that were prepared as for a run, as long as the model takes them."""
    if rows.task == "question_answering":
        _put_windows(draft, positions_of(draft.value("model.name"), None))
        return
    if rows.task in NO_LENGTH or draft.value("task.join_texts") or not samples:
        return
    limit = max(len(sample.inputs["input_ids"]) for sample in samples)
    most = LONGEST.get(rows.task, LONG)
    if any(sample.truncated for sample in samples):
        most = min(most, limit)
    read = of_tokens([len(sample.inputs["input_ids"]) + sample.truncated for sample in samples])
    target = of_tokens([len(sample.label) for sample in samples]) if rows.task == "seq2seq" else None
    by = f"{{}} tokens or fewer, of {len(samples)} as the model's tokenizer cuts them"
    _put_lengths(draft, rows, read, target, most=most, by=by)


def _put_lengths(draft: Draft, rows: Rows, read: Lengths, target: Lengths | None, *, most: int, by: str) -> None:
    """Set the longest input, and the longest target of a task that has them apart."""
    value = _put_tokens(draft, "task.max_length", read, most, by=by)
    if read.p99 > most and rows.task == "causal_lm":
        draft.put("task.too_long", "drop", "a row that is cut would lose the end of its answer")
        draft.note(f"rows of more than task.max_length = {value} tokens are left out; ftscale check counts them.")
    elif read.p99 > most:
        draft.note(f"task.max_length = {value} cuts some rows; ftscale check counts them.")
    if target is not None:
        written = _put_tokens(draft, "task.max_target_length", target, most, by=by)
        draft.put("task.generate.max_new_tokens", written, "of the texts that evaluation writes and scores")


def _put_tokens(draft: Draft, setting: str, lengths: Lengths, most: int, *, by: str) -> int:
    value = min(most, max(32, 32 * math.ceil((lengths.p99 + 8) / 32)))
    what = "targets" if setting == "task.max_target_length" else "rows"
    if lengths.p99 > most:
        draft.put(setting, value, f"the longest that is usual or that the model takes; some {what} are longer")
    else:
        draft.put(setting, value, f"99 % of the {what} have {by.format(f'{lengths.p99:.0f}')}")
    return value


def _put_windows(draft: Draft, positions: int) -> None:
    """Set the windows in which a context is read."""
    length = min(WINDOW, positions)
    draft.put("task.max_length", length, "tokens of a window; a longer context is read in several")
    draft.put("task.stride", length // 4, "tokens that a window shares with the one before")


def put_metric(draft: Draft, rows: Rows) -> None:
    """Set the metric that chooses the checkpoint, of a task without classes."""
    if rows.task == "token_classification":
        draft.put("evaluation.metric", "f1", "of whole entities, words and type, as seqeval counts them")
    elif rows.task == "question_answering":
        draft.put("evaluation.metric", "f1", "of the words of answers, as SQuAD's script counts them")
    elif rows.task == "multiple_choice":
        draft.put("evaluation.metric", "accuracy", "share of questions whose right choice is found")
    elif draft.value("task.loss") == "cosent":
        draft.put("evaluation.metric", "spearman", "whether nearer pairs have the higher scores, by their order")
    elif draft.value("task.loss") == "batch_hard_triplet":
        draft.put("evaluation.metric", "recall@1", "share of texts whose nearest one is of the same class")
    elif rows.task in ("embedding", "reranking"):
        draft.put("evaluation.metric", "mrr@10", "how high what belongs to a text stands among all held-out ones")
    elif rows.task == "seq2seq":
        draft.put("evaluation.metric", "bleu", "sacreBLEU of the texts written; chrF and ROUGE are scored as well")
    elif draft.value("task.answer_pattern") is not None:
        draft.put("evaluation.metric", "exact_match", "share of right results")
    else:
        draft.put("evaluation.metric", "loss", "of held-out rows; the lowest is kept")
