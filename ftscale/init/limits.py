"""The longest sample, the texts that evaluation writes, and the metric that chooses the checkpoint."""

from __future__ import annotations

import math

from ftscale.init.choose import positions_of
from ftscale.init.columns import Rows
from ftscale.init.draft import Draft
from ftscale.init.language import Language
from ftscale.init.lengths import READ, WRITTEN, Lengths, lengths_of, texts_of
from ftscale.init.look import Look
from ftscale.init.models import Known

MORE = 512
"""Longest input in tokens where the model has no limit, or a far one."""
LONGEST = {"causal_lm": 2048}
LONG = 2048
"""Longest input of an encoder that was chosen for long rows."""
JOINED = 512
"""Tokens of a sample of joined lines."""


def put_length(draft: Draft, found: Look, rows: Rows, known: Known | None, language: Language) -> None:
    """Set a length that nearly all rows fit into, by their words or characters."""
    if rows.task == "image_classification":
        return
    positions = positions_of(draft.value("model.name"), known)
    if draft.value("task.join_texts"):
        draft.put("task.max_length", min(JOINED, positions), "tokens of a sample of joined lines")
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
    value = _put_tokens(draft, "task.max_length", read, most)
    if read.p99 > most:
        draft.open.append(f"task.max_length = {value} cuts some rows; ftscale check counts them.")
    if one_text:
        return
    target = lengths_of(texts_of(found, rows.columns, WRITTEN), english=language.is_english)
    if target is not None:
        written = _put_tokens(draft, "task.max_target_length", target, most)
        draft.put("task.generate.max_new_tokens", written, "of the texts that evaluation writes and scores")


def _put_tokens(draft: Draft, setting: str, lengths: Lengths, most: int) -> int:
    value = min(most, max(32, 32 * math.ceil((lengths.p99 + 8) / 32)))
    counted_by = "by their words" if setting != "task.max_target_length" else "of a target"
    draft.put(setting, value, f"99 % of the rows have about {lengths.p99:.0f} tokens or fewer, {counted_by}")
    return value


def put_metric(draft: Draft, rows: Rows) -> None:
    """Set the metric that chooses the checkpoint, of a task without classes."""
    if rows.task == "token_classification":
        draft.put("evaluation.metric", "f1", "of whole entities, words and type, as seqeval counts them")
    elif rows.task == "seq2seq":
        draft.put("evaluation.metric", "bleu", "sacreBLEU of the texts written; chrF and ROUGE are scored as well")
    elif draft.value("task.answer_pattern") is not None:
        draft.put("evaluation.metric", "exact_match", "share of right results")
    else:
        draft.put("evaluation.metric", "loss", "of held-out rows; the lowest is kept")
