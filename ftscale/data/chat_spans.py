"""Which characters of a rendered conversation the model writes: from the generation prompt to the end-of-turn token.

Stock chat templates do not mark them. Nothing is searched for in the text of a conversation, because a turn may
contain anything, the end-of-turn token included. Instead the template is rendered with placeholders for contents: what
stands between placeholders is the template's own text, and shows where a turn starts and ends.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ftscale.base.errors import UserError
from ftscale.data.parts import Span
from ftscale.data.rendering import TooMuch, bounded_rendering, check_rendered

Message = dict[str, Any]

PLACEHOLDER = "placeholder-{}-7f3a9c"
HALF_A_WORD = re.compile(r"<?\w*$")
PLACEHOLDERS = re.compile(r"placeholder-(\d+)-7f3a9c")


@dataclass(frozen=True)
class Renderer:
    """A tokenizer's chat template, applied: messages to text."""

    tokenizer: Any
    template: str
    """The Jinja template's text."""
    tools: str = "null"
    """JSON of the tools that the template may describe; null = none."""

    def __call__(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """The conversation as text; with `prompt`, up to where the model's next turn begins.

        Raises UserError: the template refuses the conversation.
        """
        with _told(messages), bounded_rendering(self.template):
            text = self.tokenizer.apply_chat_template(
                list(messages),
                tools=json.loads(self.tools),
                chat_template=self.template,
                add_generation_prompt=prompt,
                tokenize=False,
            )
            check_rendered(text)
        return text

    def marked(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The conversation as text, and what stands in it between the template's {% generation %} marks."""
        from transformers.utils.chat_template_utils import render_jinja_template

        with _told(messages), bounded_rendering(self.template):
            [text], [spans] = render_jinja_template(
                [list(messages)],
                tools=json.loads(self.tools),
                chat_template=self.template,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
            check_rendered(text)
        return text, spans


def written_spans(text: str, messages: Sequence[Message], render: Renderer, *, turns: Sequence[int]) -> list[Span]:
    """Spans of characters that the model writes in these assistant turns, the end-of-turn token included.

    `text`: `render(messages)`; `turns`: numbers of messages.
    Raises UserError where the template's renderings do not tell, or a turn has no end-of-turn token.
    """
    layout = _layout(render, _frames(messages))
    contents = _aligned(text, messages, layout)
    spans = []
    for turn in turns:
        start, end = _bounds(text, messages, render, layout, contents, turn)
        spans.append((start, end + _stop(layout.tail(turn), render, turn)))
    return spans


def turn_starts(text: str, messages: Sequence[Message], render: Renderer, *, turns: Sequence[int]) -> dict[int, int]:
    """Where the model begins to write each of the turns of which the template's renderings tell it."""
    starts: dict[int, int] = {}
    if not turns:
        return starts
    with suppress(UserError):
        layout = _layout(render, _frames(messages))
        contents = _aligned(text, messages, layout)
        for turn in turns:
            with suppress(UserError):
                starts[turn] = _bounds(text, messages, render, layout, contents, turn)[0]
    return starts


def unseen_prompt(text: str, messages: Sequence[Message], render: Renderer, *, turn: int, start: int) -> str:
    """What the template's own generation prompt goes on with where the text of this turn does not; "" = it agrees.

    `start`: where the model begins to write the turn in the text.
    """
    rest = ""
    with suppress(UserError):
        rest = _layout(render, _frames(messages)).opened.get(turn, "")
    return "" if text.startswith(rest, start) else rest


def history_starts(history: Sequence[Message], render: Renderer, *, turns: Sequence[int]) -> dict[int, int]:
    """`turn_starts` in the conversation of `prompt_text`."""
    whole = [*history, _placed({"role": "assistant"}, len(history))]
    with suppress(UserError):
        return turn_starts(render(whole), whole, render, turns=turns) if turns else {}
    return {}


def prompt_text(history: Sequence[Message], render: Renderer) -> str:
    """The conversation up to where the model's next turn begins, as `written_spans` has it."""
    return _ahead([*history, {"role": "assistant", "content": ""}], render, len(history))


@lru_cache(maxsize=64)
def end_of_turn(render: Renderer) -> str:
    """The token with which the template ends the model's turn: the first one after the content of a last turn.

    Raises UserError: there is none, so that a model could not learn to stop.
    """
    text = render([_placed({"role": "user"}, 0), _placed({"role": "assistant"}, 1)])
    tail = text.partition(PLACEHOLDER.format(1))[2]
    known = {*render.tokenizer.added_tokens_encoder, *render.tokenizer.all_special_tokens}
    found = [(tail.index(token), -len(token), token) for token in known if not token.isspace() and token in tail]
    if not found:
        raise UserError(
            f"task.chat_template ends the model's turn with {tail!r}, in which no token of the tokenizer stands: the "
            "model would not learn to stop; set task.chat_template: alpaca, which ends turns with the tokenizer's "
            "eos_token, or add the template's tokens to the tokenizer."
        )
    return min(found)[2]


# ---------------------------------------------------------------- the template's own text


@dataclass(frozen=True)
class Layout:
    """The template's text around the contents of a conversation."""

    pieces: tuple[str, ...]
    """Text before, between and after the contents."""
    order: tuple[int, ...]
    """Number of the message whose content stands after each piece but the last."""
    leads: dict[int, int]
    """Characters before the content of an assistant turn that the model writes, e.g. a space."""
    opened: dict[int, str]
    """What the generation prompt of an assistant turn has beyond the text before that turn's content, e.g. a tag."""

    def tail(self, turn: int) -> str:
        """Text after a turn's content, up to the next content."""
        if self.order.count(turn) != 1:
            raise _refusal("does not render every assistant turn exactly once", turn)
        return self.pieces[self.order.index(turn) + 1]

    def follower(self, turn: int) -> int | None:
        """The message whose content stands next after that of a turn; None = the turn's is the last."""
        place = self.order.index(turn) + 1
        return self.order[place] if place < len(self.order) else None


@lru_cache(maxsize=256)
def _layout(render: Renderer, frames: str) -> Layout:
    """The layout of conversations whose messages are equal but for their contents. `frames`: JSON of the rest."""
    messages = [_placed(frame, turn) for turn, frame in enumerate(json.loads(frames))]
    text = render(messages)
    parts = PLACEHOLDERS.split(text)
    order = tuple(map(int, parts[1::2]))
    leads, opened = {}, {}
    for turn, message in enumerate(messages):
        if message["role"] == "assistant" and order.count(turn) == 1:
            before = text.partition(message["content"])[0]
            start = _start(before, messages[:turn], render)
            leads[turn] = len(before) - start
            opened[turn] = _opened(before[:start], messages[:turn], render)
    return Layout(tuple(parts[::2]), order, leads, opened)


def _frames(messages: Sequence[Message]) -> str:
    """JSON of messages without their contents; keys in their own order, in which templates write them.

    Raises UserError for a value that JSON does not have, which templates would replace by the name of its type.
    """
    try:
        return json.dumps([{**message, "content": None} for message in messages])
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"a message holds what JSON cannot ({error}); write it as a text, a number, a list or an object."
        ) from error


@contextmanager
def _told(messages: Sequence[Message]) -> Iterator[None]:
    """Turns whatever a template raises inside, for a conversation that it was not made for, into a UserError."""
    from jinja2 import TemplateError

    try:
        yield
    except TooMuch as error:
        raise UserError(
            f"task.chat_template, or else the tokenizer's own template: it {error}; set task.chat_template to another "
            "template."
        ) from error
    except (
        TemplateError,
        TypeError,
        ValueError,
        AttributeError,
        LookupError,
        ArithmeticError,
        RecursionError,
    ) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"task.chat_template cannot render a conversation of {roles}: {error}; mend the row, or set "
            "task.chat_template to another template."
        ) from error


def _placed(message: Message, turn: int) -> Message:
    return {**message, "content": PLACEHOLDER.format(turn)}


def _start(before: str, history: Sequence[Message], render: Renderer) -> int:
    """Where the model begins to write. `before`: the text up to its turn's content."""
    prompt, plain = _attempt(history, render, prompt=True), _attempt(history, render, prompt=False)
    if prompt is not None and before.startswith(prompt):
        header = before[len(prompt) :]
        # a template that knows no generation prompt may still write a header, which is then not the model's
        if not header.strip() or prompt != plain:
            return len(prompt)
    shared = os.path.commonprefix([before, prompt or ""])
    shared = HALF_A_WORD.sub("", shared)
    if plain is not None and len(shared) > len(plain) and before[len(shared) :].strip():
        return len(shared)  # the prompt opens a tag, and the model's own reasoning stands there instead
    return len(before.rstrip(" "))  # a space belongs to the word after it


def _opened(before: str, history: Sequence[Message], render: Renderer) -> str:
    """What the generation prompt has beyond the text up to where the model begins to write, where they agree so far."""
    prompt = _attempt(history, render, prompt=True)
    if prompt is None or not prompt.startswith(before) or prompt == _attempt(history, render, prompt=False):
        return ""
    rest = prompt[len(before) :]
    return rest if rest.strip() else ""


def _attempt(messages: Sequence[Message], render: Renderer, *, prompt: bool) -> str | None:
    """The text, or None where the template does not take a conversation that ends here."""
    if not messages:
        return None
    try:
        return render(messages, prompt=prompt)
    except UserError:
        return None


def _stop(tail: str, render: Renderer, turn: int) -> int:
    """Characters of a tail up to and including the end-of-turn token."""
    token = end_of_turn(render)
    place = tail.find(token)
    if place < 0:
        raise _refusal(
            f"ends the last turn with {token!r} but not every one", turn, fix="set task.targets: last, or another one"
        )
    return place + len(token)


# ---------------------------------------------------------------- contents in the text


def _aligned(text: str, messages: Sequence[Message], layout: Layout) -> dict[int, Span] | None:
    """Where the contents stand, if the text is exactly pieces and contents in turn, as most templates have it."""
    if not text.startswith(layout.pieces[0]):
        return None
    contents, cursor = {}, len(layout.pieces[0])
    for turn, piece in zip(layout.order, layout.pieces[1:], strict=True):
        content = messages[turn]["content"]
        form = next((form for form in (content, content.strip()) if text.startswith(form + piece, cursor)), None)
        if form is None:
            return None
        contents[turn] = (cursor, cursor + len(form))
        cursor += len(form) + len(piece)
    return contents if cursor == len(text) else None


def _bounds(
    text: str,
    messages: Sequence[Message],
    render: Renderer,
    layout: Layout,
    contents: dict[int, Span] | None,
    turn: int,
) -> Span:
    """Start of what the model writes and end of the content of one turn."""
    if contents is None or turn not in layout.leads:
        return _located(text, messages, render, layout, turn)
    return contents[turn][0] - layout.leads[turn], contents[turn][1]


def _located(text: str, messages: Sequence[Message], render: Renderer, layout: Layout, turn: int) -> Span:
    """Start of what the model writes and end of the content of one turn, where the template changes contents."""
    tail, follower = layout.tail(turn), layout.follower(turn)
    prompt = _ahead(messages, render, turn)
    through = text if follower is None else _before(messages, render, follower)
    start, end = len(prompt), len(through) - len(tail)
    written, content = _squeezed(text[start:end]), _squeezed(messages[turn]["content"])
    # without content the prompt may reach into what follows it: Qwen2 writes "assistant" + "\n" + content + "\n" + call
    in_order = start <= end or (not content and start < end + _stop(tail, render, turn))
    if not (in_order and text.startswith(prompt) and text.startswith(through) and through.endswith(tail)):
        raise _refusal("renders it differently depending on other turns", turn)
    if not (written.endswith(content) or content.endswith(written)):
        raise _refusal("does not end it with its content", turn)
    return start, end


def _ahead(messages: Sequence[Message], render: Renderer, turn: int) -> str:
    """The text up to where the model begins to write a turn."""
    before = _before(messages, render, turn)
    return before[: _start(before, messages[:turn], render)]


def _before(messages: Sequence[Message], render: Renderer, turn: int) -> str:
    """The text up to the content of a message."""
    placed = _placed(messages[turn], turn)
    before, found, _ = render([*messages[:turn], placed, *messages[turn + 1 :]]).partition(placed["content"])
    if not found:
        raise _refusal("leaves it out", turn)
    return before


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _refusal(reason: str, turn: int, *, fix: str = "set another one") -> UserError:
    return UserError(
        f"task.chat_template: what the model writes in message {turn} of a conversation cannot be told, because the "
        f"template {reason}; {fix}, mark it with {{% generation %}} in the template, or set task.targets: all."
    )
