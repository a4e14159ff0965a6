"""The model for rows: the user's, or one of the list by task, language, length and memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ftscale.init import models
from ftscale.init.columns import Rows
from ftscale.init.device import Machine
from ftscale.init.draft import Draft
from ftscale.init.language import Language
from ftscale.init.lengths import READ, WRITTEN, Lengths, lengths_of, texts_of
from ftscale.init.look import Look
from ftscale.init.models import Known

NO_LIMIT = 2**31


def put_model(
    draft: Draft, rows: Rows, found: Look, model: str | None, language: Language, machine: Machine
) -> Known | None:
    """Set the model, None = one of the list; returns what is known of it where it is one of the list."""
    if model is not None:
        draft.put("model.name", model, "--model")
        if rows.chat and not _has_template(model):
            draft.put("task.chat_template", "alpaca", f"{model} has no template of its own for chats")
        return None
    lengths = lengths_of(texts_of(found, rows.columns, (*READ, *WRITTEN)), english=language.is_english)
    known = _chosen(rows, language, lengths, machine)
    reason = known.about
    if rows.task != "image_classification" and not rows.languages:
        reason += f" ({language.why})"
    draft.put("model.name", known.name, reason)
    if known is models.M2M100 and rows.languages:
        for setting, code in zip(("source_language", "target_language"), rows.languages, strict=True):
            draft.put(f"task.{setting}", code, "by the names of the files")
    return known


def _chosen(rows: Rows, language: Language, lengths: Lengths | None, machine: Machine) -> Known:
    english, tokens = language.is_english, lengths.p95 if lengths else 0.0
    if rows.task == "image_classification":
        return models.image_model(machine)
    if rows.task == "causal_lm":
        return models.language_model(machine, english=english, chat=rows.chat, tools=rows.tools)
    if rows.task == "seq2seq":
        return models.encoder_decoder(machine, english=english, languages=rows.languages)
    choose = models.cased_encoder if rows.task == "token_classification" else models.encoder
    return choose(machine, english=english, tokens=tokens)


def _has_template(model: str) -> bool:
    """Whether the model in a folder has a template for chats; those of the hub are taken to."""
    folder = Path(model).expanduser()
    if not folder.is_dir() or (folder / "chat_template.jinja").is_file():
        return True
    return bool(_json(folder / "tokenizer_config.json").get("chat_template"))


def positions_of(model: str, known: Known | None) -> int:
    """The positions of a model of the list, or in a folder as its config.json says; else no limit."""
    if known is not None:
        return known.positions or NO_LIMIT
    about = _json(Path(model).expanduser() / "config.json")
    found = about.get("max_position_embeddings") or about.get("n_positions")
    taken = 2 if "roberta" in str(about.get("model_type")) else 0  # of padding: its positions begin after it
    return found - taken if isinstance(found, int) else NO_LIMIT


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
