"""Settings of causal language modelling."""

from __future__ import annotations

from typing import ClassVar, Literal

from ftscale.config.tasks.base import Capability, Columns, GenerationSettings, TextSettings


class CausalLMSettings(TextSettings):
    """The next token: of plain text (`text`), of a completion (`prompt`, `completion`), or of a chat.

    A chat is a `messages` column (role, content), ShareGPT's `conversations` (from, value), or Alpaca's
    `instruction`, `input`, `output`.
    """

    columns: ClassVar[Columns] = (
        ("messages", "tools"),
        ("messages",),
        ("conversations", "tools"),
        ("conversations",),
        ("instruction", "input", "output"),
        ("instruction", "output"),
        ("prompt", "completion"),
        ("text",),
    )
    label_columns: ClassVar[frozenset[str]] = frozenset({"completion", "output"})
    optional_columns: ClassVar[frozenset[str]] = frozenset({"input", "tools"})
    can: ClassVar[frozenset[Capability]] = frozenset(
        {"flat_rows", "writes_text", "embeds", "gives_logits", "scores_sequences"}
    )
    name: Literal["causal_lm"] = "causal_lm"
    """The task."""
    targets: Literal["assistant", "last", "all"] = "assistant"
    """Supervised tokens of a chat or a completion: every assistant turn, the last one, or every token."""
    chat_template: str | None = None
    """A Jinja template (text, or the path of a .jinja file), or one of chatml, llama2, llama3, alpaca; null = the
    tokenizer's own."""
    join_texts: bool = False
    """Lay plain texts end to end, separated by the end token, and cut into samples of `max_length`."""
    generate: GenerationSettings | None = None
    """Generate the last turn in evaluation and score it by exact match and ROUGE; null = do not."""
    answer_pattern: str | None = None
    """Regular expression whose last match (first group) is the answer that exact match compares, e.g. `#### (.+)`;
    null = the whole text."""
