"""Settings of sequence to sequence."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveInt

from ftscale.config.tasks.base import Capability, Columns, GenerationSettings, TextSettings


class Seq2SeqSettings(TextSettings):
    """A text from a text (`source`, `target`)."""

    columns: ClassVar[Columns] = (("source", "target"),)
    label_columns: ClassVar[frozenset[str]] = frozenset({"target"})
    text_column: ClassVar[str | None] = "source"
    can: ClassVar[frozenset[Capability]] = frozenset({"writes_text", "gives_logits", "scores_sequences"})
    name: Literal["seq2seq"] = "seq2seq"
    """The task."""
    max_target_length: PositiveInt | None = None
    """Longest target in tokens; null = `max_length`."""
    source_prefix: str = ""
    """Put before each source, e.g. `translate German to English: ` for T5."""
    source_language: str | None = None
    """Code of the sources' language, where the tokenizer writes one (mBART, NLLB, M2M100), e.g. `deu_Latn`; null = as
    the tokenizer's files say."""
    target_language: str | None = None
    """Code of the targets' language; generation begins with it. null = as the tokenizer's files say."""
    generate: GenerationSettings | None = GenerationSettings()
    """Generate in evaluation and score by sacreBLEU, chrF and ROUGE; null = loss and token accuracy only."""
