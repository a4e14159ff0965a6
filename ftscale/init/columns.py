"""The task that rows are for, and which of their columns it reads."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product, takewhile
from string import ascii_lowercase, digits
from typing import Any

from ftscale.base.errors import UserError
from ftscale.config.tasks import SETTINGS
from ftscale.init.doubts import Doubts, Option, shortened
from ftscale.init.draft import words
from ftscale.init.fasttext import MARK
from ftscale.init.guess import likely_label
from ftscale.init.look import MANY_CLASSES, Column, Look
from ftscale.init.mapped import Named, as_called

TEXTS = words(
    "text sentence sentence1 sentence_a premise content body review message headline title document utterance comment "
    "tweet question query abstract description sms"
)
LABELS = words(
    "label labels class category intent sentiment topic emotion genre genres tags gold_label entailment_judgment "
    "polarity stars target rating relatedness_score similarity score answer y"
)
PAIRS = (
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
)
HEADED = (
    ("title", "description"),
    ("title", "body"),
    ("title", "content"),
    ("title", "text"),
    ("title", "abstract"),
    ("subject", "body"),
    ("headline", "text"),
    ("summary", "text"),
)
"""A heading and what stands below it, which are read together."""
WRITTEN = (  # columns of a source and a target: prompt and completion of causal_lm, or source and target of seq2seq
    ("question", "answer"),
    ("query", "response"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("input", "output"),
    ("mr", "ref"),
    ("document", "summary"),
    ("article", "highlights"),
)
PROMPTS = 5
"""The first of these are prompts and what is to be answered."""
ANCHORS = words("anchor query question")
POSITIVES = words("positive pos positives document passage paragraph")
NEGATIVES = words("negative neg negatives hard_negative hard_negatives")
SCORES = words("score similarity similarity_score relatedness relatedness_score rating is_duplicate label")
"""Of how near two texts are."""
LISTED_CHOICES = words("choices options endings answers_choices alternatives")
STEMS = ("ending", "choice", "option", "option_", "op", "sol", "answer", "a", "")
"""Before the numbers or letters of columns that hold a choice each."""
DISTRACTORS = words("distractor1 distractor2 distractor3")
RIGHT = words("label answerkey answer_key correct_answer answer gold cop correct correct_option")
ASKING = words("sent2 ctx question_stem question goal sentence query premise prompt")
ABOUT = words("sent1 article passage context support")
CHATS = ("messages", "conversations")
PIECES = re.compile(r"\w+|[^\w\s]")
TOKENS_A_WORD = 1.5
"""Of words and marks of English."""
SPLITS = "|;,"
"""Between several classes in a cell."""

Columns = dict[str, Any]
"""What the task calls a column, to the file's name of it."""


WHERE_ASKED = ("embedding", "masked_lm", "reranking")
"""Tasks that any columns of texts would fit: where no column's name tells them, they are not guessed."""


@dataclass(frozen=True)
class Rows:
    """What a row is to a task."""

    task: str
    columns: Columns
    why: str
    label: Column | None = None
    chat: bool = False
    tools: bool = False
    """Whether the turns of a chat call functions."""
    languages: tuple[str, str] | None = None
    """Of a translation, the codes of both."""
    settings: dict[str, tuple[Any, str]] = field(default_factory=dict)
    """Settings of the task that follow from the rows, with the reason."""
    is_sure: bool = True
    """Whether no other task comes into question."""


def rows_of(found: Look, asked: str | None, named: Named | None = None) -> Rows:
    """Return the task, what its columns are called in the file, and why. Raises UserError where nothing tells it.

    `asked`: the task, `named`: the columns that the user gave; None = as the file tells.
    """
    if named is not None:
        return _of_named(found, asked, named)
    ways = {
        "multiple_choice": _choices,
        "embedding": _texts_that_belong,
        "question_answering": _answered,
        "image_classification": _images,
        "token_classification": _tagged,
        "causal_lm": _chat_or_text,
        "seq2seq": _source_and_target,
        "text_classification": _classes,
        "masked_lm": _plain_texts,
        "reranking": _reranked,
    }
    if asked is not None:
        if (answer := ways[asked](found, True)) is not None:
            return answer
        example = ", ".join(f"{role}: NAME" for role in SETTINGS[asked].columns[-1])
        raise UserError(
            f"--task = {asked} does not fit {found.path}, whose columns are {_names(found)}; give another, or name its "
            f"columns: --columns '{{{example}}}'."
        )
    # a look at what fits asks nothing yet
    first = replace(found, doubts=Doubts(_likely if found.doubts.ask is not None else None))
    answers = {name: answer for name, way in ways.items() if (answer := way(first, False)) is not None}
    told = bool(answers)
    if not told:
        likely = {name: way for name, way in ways.items() if name not in WHERE_ASKED}
        answers = {name: answer for name, way in likely.items() if (answer := way(first, True)) is not None}
    if not answers:
        raise UserError(
            f"FILE = {found.path} does not tell its task by its columns ({_names(found)}); name those that a task "
            f"reads, e.g. --columns '{{text: NAME, label: NAME}}', or give --task {', '.join(ways)}."
        )
    default = next(iter(answers)) if told else _likeliest(found, answers)
    if told and answers[default].is_sure:
        answers = {default: answers[default]}
    others = [name for name in answers if name != default]
    as_well = f"; {' or '.join(others)} would fit as well" if others else ""
    chosen = found.doubts.settle(
        f"What is to be learned from {found.path} ({_names(found)})?",
        options=[Option(name, answer.why) for name, answer in answers.items()],
        default=default,
        note=f"the task is taken to be {default}{as_well} (--task{'' if told else ' and --columns'})."
        if others or not told
        else None,
    )
    answer = ways[chosen](found, not told)
    assert answer is not None
    return answer


def _of_named(found: Look, asked: str | None, named: Named) -> Rows:
    """What rows are to a task by the columns that the user named. Raises UserError for one that it does not read."""
    called = as_called(found, named)
    unread = UserError(
        f"--columns: {', '.join(f'{name} as {role}' for role, name in named.items())} of {found.path} is not what "
        f"{asked or 'a task'} reads; name all columns that it needs, and such as hold what their roles are."
    )
    try:
        rows = rows_of(called, asked)
    except UserError as error:
        raise unread from error
    read = dict.fromkeys(role for alternative in SETTINGS[rows.task].columns for role in alternative)
    if strange := next((role for role in named if role not in read), None):
        raise UserError(
            f"--columns: {strange} is no column of {rows.task}, which reads {', '.join(read)}; leave it out, or give "
            "another --task."
        )
    if _mapped(rows.columns):  # a role was given to a column of another
        raise unread
    return replace(rows, columns=_mapped(dict(named)), label=found.column(named["label"]) if rows.label else None)


def _likely(question: str, options: Sequence[Option], default: str) -> str:
    """Answer a question as its asker thinks likely."""
    return default


def _likeliest(found: Look, tasks: Collection[str]) -> str:
    """The task of a file that tells none: by a column like a label, by two columns of texts, else the first."""
    if "text_classification" in tasks and _like_label(found) is not None:
        return "text_classification"
    return "seq2seq" if "seq2seq" in tasks and len(_texts(found)) == 2 else next(iter(tasks))


def _names(found: Look) -> str:
    return ", ".join(str(column.name) for column in found.columns) or "none"


def _texts(found: Look, but: Column | None = None) -> list[Column]:
    """Columns of texts; one of ids only where there is no other."""
    texts = [column for column in found.columns if column.is_text and column is not but]
    return [column for column in texts if not column.is_id] or texts


def _mapped(columns: Columns) -> Columns:
    """Without those that the file calls as the task does."""
    return {role: name for role, name in columns.items() if role != name}


# ---------------------------------------------------------------- images, tags


def _images(found: Look, asked: bool) -> Rows | None:
    if found.form in ("image_folder", "idx"):
        why = "images in folders of their classes" if found.form == "image_folder" else "images with their classes"
        label = found.column("label")
        if label is None or len(label.counts) < 2:
            raise UserError(
                f"FILE = {found.path} has images of {'no' if label is None else 'one'} class; name the folder that "
                "holds a folder for each class."
            )
        return Rows("image_classification", {}, why, label)
    image = next((column for column in found.columns if column.is_image), None)
    label = _label(found)
    if image is None or label is None:
        return None
    columns = _mapped({"image": image.name, "label": label.name})
    return Rows("image_classification", columns, "images and their classes", label)


def _tagged(found: Look, asked: bool) -> Rows | None:
    if found.form == "conll":
        return Rows("token_classification", {}, "a word with its tag a line")
    listed = [column for column in found.columns if column.values and all(isinstance(v, list) for v in column.values)]
    named = {str(column.name): column for column in listed}
    first = next((named[name] for name in ("words", "tokens") if name in named), None)
    second = next((named[name] for name in ("tags", "ner_tags", "labels", "pos_tags") if name in named), None)
    if first is None or second is None:
        return None
    columns = _mapped({"words": first.name, "tags": second.name})
    return Rows("token_classification", columns, "lists of words and of their tags")


# ---------------------------------------------------------------- choices


def _choices(found: Look, asked: bool) -> Rows | None:
    """Questions with several answers, in one column or in one each, and which of them is right."""
    named = {str(column.name).strip().lower(): column.name for column in found.columns}
    nested = found.column("question")
    first = nested.values[0] if nested is not None and nested.values else None
    if isinstance(first, dict) and {"stem", "choices"} <= first.keys() and "answerkey" in named:
        columns = {"question": "question.stem", "choices": "question.choices", "label": named["answerkey"]}
        return Rows("multiple_choice", columns, "questions with their choices inside")
    choices = _choice_columns(found, named)
    label = next((named[name] for name in RIGHT if name in named and named[name] != choices), None)
    question = next((named[name] for name in ASKING if name in named), None)
    if choices is None or label is None or question is None:
        return None
    about = next((named[name] for name in ABOUT if name in named and named[name] != question), None)
    if "premise" in named and found.column("question") is not None and _asks_for(found):
        question, about = f"What was the {{{named['question']}}} of this?", named["premise"]
    columns = {
        **({} if about is None else {"context": about}),
        "question": question,
        "choices": choices,
        "label": label,
    }
    what = f"the column {choices}" if isinstance(choices, (str, int)) else f"{len(choices)} columns of choices"
    return Rows("multiple_choice", columns, f"questions, {what}, and {label} that says which is right")


def _choice_columns(found: Look, named: Mapping[str, str | int]) -> Any:
    """The one column of all choices, or a list of columns of one each."""
    for name in LISTED_CHOICES:
        column = found.column(name)
        if column is not None and any(
            isinstance(value, (list, dict)) or "[" in str(value) for value in column.values[:9]
        ):
            return column.name
    if {"correct_answer", "distractor1", "distractor2"} <= named.keys():
        return [named[name] for name in ("correct_answer", *DISTRACTORS) if name in named]
    for stem, ends in product(STEMS, (digits, digits[1:], ascii_lowercase)):
        several = list(takewhile(named.__contains__, (stem + end for end in ends)))
        if len(several) > 1 and (stem or several[2:] and ends is ascii_lowercase):
            return [named[name] for name in several]
    return None


def _asks_for(found: Look) -> bool:
    """Whether the questions are words, cause or effect, as COPA has them."""
    column = found.column("question")
    return column is not None and set(column.counts) <= {"cause", "effect"}


# ---------------------------------------------------------------- texts that belong together


def _texts_that_belong(found: Look, asked: bool) -> Rows | None:
    """An anchor, or a query, with a text that is right for it, and perhaps others that are not.

    Where it is asked for, also pairs with a score of how near they are, and texts with their classes.
    """
    if asked and (rows := _scored_pairs(found) or _texts_of_classes(found)) is not None:
        return rows
    named = {str(column.name).strip().lower(): column.name for column in found.columns}
    anchor = next((named[name] for name in ANCHORS if name in named), None)
    positive = next((named[name] for name in POSITIVES if name in named), None)
    if asked and (anchor is None or positive is None):
        texts = [column.name for column in _texts(found)]
        anchor, positive = texts[:2] if len(texts) > 1 else (None, None)
    negative = next((named[name] for name in NEGATIVES if name in named), None)
    if anchor is None or positive is None:
        return None
    read = (anchor, positive, negative, "score")
    unread = _by_name([column for column in found.columns if column.name not in read], LABELS)
    if unread is not None:
        found.doubts.note(
            f"{unread.name} is not read: the texts of each row are taken to belong together; leave rows out in which "
            "they do not."
        )
    columns = {"anchor": anchor, "positive": positive, **({} if negative is None else {"negative": negative})}
    return Rows("embedding", _mapped(columns), f"each {anchor} with the {positive} that belongs to it")


def _scored_pairs(found: Look) -> Rows | None:
    """Two texts and a number that says how near they are."""
    score = _by_name([column for column in found.columns if column.is_number], SCORES)
    texts = _pair(found) or tuple(_texts(found))
    if score is None or len(texts) != 2 or found.form == "beir":
        return None
    columns = {"text": texts[0].name, "text_pair": texts[1].name, "score": score.name}
    settings: dict[str, tuple[Any, str]] = {"loss": ("cosent", "nearer pairs have the higher scores")}
    why = f"pairs of texts, and {score.name} that says how near they are"
    return Rows("embedding", _mapped(columns), why, settings=settings)


def _texts_of_classes(found: Look) -> Rows | None:
    """One text, and its class."""
    label = _label(found)
    texts = _texts(found, but=label)
    if len(texts) != 1 or label is None or label.is_fraction:
        return None
    columns = _mapped({"text": texts[0].name, "label": label.name})
    settings: dict[str, tuple[Any, str]] = {"loss": ("batch_hard_triplet", "texts of a class are near each other")}
    return Rows("embedding", columns, f"texts and their {label.name}", label, settings=settings)


def _reranked(found: Look, asked: bool) -> Rows | None:
    """The same rows, where they are asked for: with wrong texts beside the right one, or with scores from 0 to 1."""
    rows = _texts_that_belong(found, asked) if asked else None
    if rows is None or rows.label is not None:
        return None
    score = _by_name(found.columns, SCORES) if rows.settings else None
    if score is not None and not all(0 <= float(value) <= 1 for value in score.given):
        found.doubts.note(f"{score.name} is no share of the truth from 0 to 1, as reranking needs it; divide it.")
    return replace(rows, task="reranking", settings={})


# ---------------------------------------------------------------- answers in a text


def _answered(found: Look, asked: bool) -> Rows | None:
    """Questions with contexts, and answers that stand in them."""
    named = {str(column.name).strip().lower(): column for column in found.columns}
    if not {"question", "context"} <= named.keys():
        return None
    role = next((name for name in ("answers", "answer") if name in named), None)
    if role is None or not (asked or _stand_in(named[role], named["context"])):
        return None
    roles = ("question", "context", role, *(("answer_start",) if role == "answer" and "answer_start" in named else ()))
    columns = {name: named[name].name for name in roles}  # all of them: their texts are measured by these
    return Rows("question_answering", columns, f"questions, contexts, and {role} that stand in them")


def _stand_in(answers: Column, contexts: Column) -> bool:
    """Whether most answers are pieces of their contexts, or say where they start."""
    pairs = list(zip(answers.values, contexts.values, strict=False))
    given = [(value, context) for value, context in pairs if value not in (None, "", [])]
    inside = [not isinstance(value, str) or "answer_start" in value or value in context for value, context in given]
    return sum(inside) > len(inside) / 2


# ---------------------------------------------------------------- texts that are written


def _chat_or_text(found: Look, asked: bool) -> Rows | None:
    for name in CHATS:
        column = None if found.column("chosen") else found.column(name)
        if column is not None and column.values and isinstance(column.values[0], list):
            tools = found.column("tools") is not None
            return Rows("causal_lm", {}, f"a column {name} of turns", chat=True, tools=tools)
    if (chosen := found.column("chosen")) is not None:
        return _chosen(found, chosen)
    if (nested := _nested(found)) is not None:
        return nested
    if found.column("instruction") is not None and found.column("output") is not None:
        return Rows("causal_lm", {}, "columns instruction and output", chat=True)
    if found.column("prompt") is not None and found.column("completion") is not None:
        return _completion(found, "prompt", "completion")
    for first, second in WRITTEN[:PROMPTS]:
        one, two = found.column(first), found.column(second)
        if one is not None and two is not None and two.is_text:
            return _completion(found, one.name, two.name)
    texts = _texts(found)
    if (len(found.columns) == 1 and (texts or found.form == "text")) or (asked and texts):
        columns = _mapped({"text": _longest(found, texts or found.columns).name})
        joined = {"join_texts": (True, "lines are laid end to end and cut at task.max_length")}
        return Rows("causal_lm", columns, "plain texts", settings=joined)
    return None


def _plain_texts(found: Look, asked: bool) -> Rows | None:
    """Texts of which each is a sample, where that is asked for: they are as well what another task reads."""
    texts = _texts(found)
    if not asked or not texts:
        return None
    columns = {} if found.form == "text" else _mapped({"text": _text(found, texts)})
    return Rows("masked_lm", columns, "plain texts")


def _completion(found: Look, prompt: str | int, completion: str | int) -> Rows:
    """A prompt and its answer; where answers end as those of GSM8K do, what follows the mark is scored."""
    columns = _mapped({"prompt": prompt, "completion": completion})
    why = f"columns {prompt} and {completion}, both of texts"
    column = found.column(completion)
    texts = [value for value in column.values if isinstance(value, str)] if column else []
    if not texts or sum("#### " in text for text in texts) < 0.9 * len(texts):
        return Rows("causal_lm", columns, why, is_sure=completion == "completion")
    longest = pieces(max(texts, key=pieces)) * TOKENS_A_WORD
    settings = {
        "generate.max_new_tokens": (32 * math.ceil(longest / 32), "room for the longest answer"),
        "answer_pattern": ("#### (.+)", "answers end with #### and the result, which alone is compared"),
    }
    return Rows("causal_lm", columns, why, settings=settings)


def pieces(text: str) -> int:
    """Count the words and marks of a text."""
    return len(PIECES.findall(text))


def _chosen(found: Look, chosen: Column) -> Rows | None:
    """The good answers of preferences, where a column of the file is a chat or an answer to a prompt."""
    if chosen.values and isinstance(chosen.values[0], list):
        return Rows("causal_lm", {"messages": chosen.name}, "the chats in chosen, without rejected", chat=True)
    prompt = found.column("prompt") or found.column("question")
    if prompt is not None and chosen.is_text:
        columns = _mapped({"prompt": prompt.name, "completion": chosen.name})
        return Rows("causal_lm", columns, "prompts with the answers in chosen, without rejected")
    return None


def _nested(found: Look) -> Rows | None:
    """Instructions with a list of examples, as Self-Instruct has them: the first example of each."""
    instances = found.column("instances")
    if found.column("instruction") is None or instances is None or not instances.values:
        return None
    if not all(isinstance(value, list) and value and isinstance(value[0], dict) for value in instances.values):
        return None
    more = sum(len(value) > 1 for value in instances.values)
    if more:
        found.doubts.note(f"{more} rows have more than one instance, of which the first alone is read.")
    columns = {"input": "instances.0.input", "output": "instances.0.output"}
    return Rows("causal_lm", columns, "instructions with instances of input and output", chat=True)


def _source_and_target(found: Look, asked: bool) -> Rows | None:
    if found.form == "parallel":
        codes = re.search(r"\{(\w\w),(\w\w)\}|\.(\w\w),[^,]*\.(\w\w)(\.\w+)?$", found.path)
        pair = tuple(code for code in codes.groups() if code and not code.startswith(".")) if codes else ()
        languages = (pair[0], pair[1]) if len(pair) == 2 else None
        if languages:
            found.doubts.note(f"{languages[0]} is taken for the source, {languages[1]} for the target.")
        return Rows("seq2seq", {}, "two files of lines side by side", languages=languages)
    translation = found.column("translation")
    if translation is not None and translation.values and isinstance(translation.values[0], dict):
        first, second, *_ = [*translation.values[0], "", ""]
        columns: Columns = {"source": f"translation.{first}", "target": f"translation.{second}"}
        found.doubts.note(f"{first} is taken for the source, {second} for the target.")
        return Rows("seq2seq", columns, "a column translation of two languages", languages=(first, second))
    for first, second in (("source", "target"), *WRITTEN):
        one, two = found.column(first), found.column(second)
        if one is not None and two is not None and two.is_text:
            return Rows("seq2seq", _mapped({"source": one.name, "target": two.name}), f"columns {first} and {second}")
    texts = _texts(found)
    if asked and len(texts) >= 2:
        source = _column(found, "source", texts, texts[0], note=None)
        others = [column for column in texts if column is not source]
        target = _column(found, "target", others, others[0], note=None)
        found.doubts.note(f"source and target are taken to be {source.name} and {target.name}, in this order.")
        return Rows("seq2seq", {"source": source.name, "target": target.name}, "two columns of texts")
    return None


# ---------------------------------------------------------------- classes


def _classes(found: Look, asked: bool) -> Rows | None:
    flags = _flags(found)
    several = _several(found)
    label = None if flags else several[0] if several else _label(found)
    told = label is not None
    if label is None and asked and not flags:
        label = _asked_label(found)
    if label is None and not flags:
        return None
    texts = _texts(found, but=label)
    if not texts:
        return None
    settings: dict[str, tuple[Any, str]] = {}
    if flags:
        settings["problem"] = ("multi_label", f"{len(flags)} columns of 0 and 1, one for each class")
    elif several and _are_several(found, *several):
        settings["problem"] = ("multi_label", f"rows of {several[0].name} may have several classes")
        if several[1]:
            settings["label_separator"] = (several[1], "between the classes of a row")
    elif label is not None and told:
        label = _settled(found, label)
    pair = _pair(found) or _unnamed_pair(found, texts)
    texts = [column for column in texts if column in found.columns]
    columns: Columns = {"text": pair[0].name, "text_pair": pair[1].name} if pair else {"text": _text(found, texts)}
    columns["label"] = flags or (label.name if label is not None else "")
    why = "a pair of texts and its label" if pair else "a text and its label"
    return Rows("text_classification", _mapped(columns), why, label, settings=settings)


def _are_several(found: Look, label: Column, separator: str) -> bool:
    """Whether what stands in a cell are several classes."""
    if not separator or separator == " ":  # a list, or as fastText writes them
        return True
    example = next(value for value in label.values if separator in str(value))
    answer = found.doubts.settle(
        f"Are the cells of {label.name}, such as {shortened(example)}, one class or several?",
        options=[Option("several", f"parted by {separator}"), Option("one", "a class is the whole cell")],
        default="several",
        note=f"the cells of {label.name} are taken for several classes parted by {separator}; "
        "problem: single_label makes each whole cell a class.",
    )
    return answer == "several"


def _settled(found: Look, label: Column) -> Column:
    """The column of the label: by its name, else by a question; another that may be one is told."""
    others = [column for column in _candidates(found) if column is not label]
    if _by_name([label], LABELS) is None:
        note = f"the label is taken to be {label.name}, by its few values."
    elif named := [column for column in others if _by_name([column], LABELS) is not None]:
        names = " and ".join(str(column.name) for column in named)
        note = f"the label is taken to be {label.name}; {names} could be one as well."
    else:
        return label
    return _column(found, "label", [label, *others], label, note=note)


def _candidates(found: Look) -> list[Column]:
    return [column for column in found.columns if column.is_class or (column.is_number and _by_name([column], LABELS))]


def _text(found: Look, texts: Sequence[Column]) -> str | int:
    """The column of the text, or a heading and what stands below it."""
    for first, second in HEADED:
        one, two = found.column(first), found.column(second)
        if one in texts and two in texts and one is not None and two is not None:
            return f"{{{one.name}}} {{{two.name}}}"
    first_text = _by_name(texts, TEXTS) or max(texts, key=lambda column: column.words)
    if len(texts) == 1:
        return first_text.name
    others = ", ".join(str(column.name) for column in texts if column is not first_text)
    note = (
        f"the text is taken to be {first_text.name}; {others} hold texts as well, which are not read "
        f'(text: "{{{texts[0].name}}} {{{texts[1].name}}}" reads two together).'
    )
    return _column(found, "text", texts, first_text, note=note).name


def _unnamed_pair(found: Look, texts: Sequence[Column]) -> tuple[Column, Column] | None:
    """Two texts in columns without names, which are read as a pair; None = one of them is to be chosen."""
    if len(texts) != 2 or isinstance(texts[0].name, str):
        return None
    first, second = texts
    answer = found.doubts.settle(
        f"The columns {first.name} and {second.name} of {found.path} hold texts; which are to be read?",
        options=[
            Option("both", "as a pair"),
            *(Option(str(column.name), shortened(column.values[0])) for column in texts),
        ],
        default="both",
        note=f"the texts of columns {first.name} and {second.name} are read together, as a pair.",
    )
    if answer == "both":
        return first, second
    found.columns = [column for column in found.columns if column not in texts or str(column.name) == answer]
    return None


def _longest(found: Look, texts: Sequence[Column]) -> Column:
    """The text of which most is to be learned, where several columns hold texts."""
    longest = max(texts, key=lambda column: column.words)
    others = ", ".join(str(column.name) for column in texts if column is not longest)
    note = f"the text is taken to be {longest.name}; {others} hold texts as well, which are not read."
    return _column(found, "text", texts, longest, note=note if others else None)


def _column(found: Look, role: str, columns: Sequence[Column], default: Column, *, note: str | None) -> Column:
    """The column of a role: asked for, or the default."""
    answer = found.doubts.settle(
        f"Which column of {found.path} is the {role}?",
        options=[Option(str(column.name), shortened(column.values[0]) if column.values else "") for column in columns],
        default=str(default.name),
        note=note,
    )
    return next(column for column in columns if str(column.name) == answer)


def _label(found: Look) -> Column | None:
    """The column of classes, by its name, else by its values; of numbers with a fraction where none is of classes."""
    classes = [column for column in found.columns if column.is_class]
    if (named := _by_name(classes, LABELS)) is not None:
        return named
    # of a named column of numbers, an id or a year, few values recur as well
    classes = [column for column in classes if isinstance(column.name, int) or not column.is_number]
    if classes:
        return min(classes, key=lambda column: (column.words, len(column.counts)))
    return _by_name([column for column in found.columns if column.is_number], LABELS)


def _like_label(found: Look) -> Column | None:
    """The column that is most like a label, beside one of texts; None where none is like one."""
    texts = _texts(found)
    others = [column for column in found.columns if texts and texts != [column] and column.counts]
    return _by_name(others, LABELS) or likely_label(others)


def _asked_label(found: Look) -> Column | None:
    """The column of the label where neither names nor few values tell it; None where nobody can say."""
    likely, texts = _like_label(found), _texts(found)
    others = [column for column in found.columns if texts and texts != [column]]
    if not others or (likely is None and found.doubts.ask is None):
        return None
    default = likely or min(others, key=lambda column: (column.words, len(column.counts)))
    note = f"the label is taken to be {default.name}, which has {len(default.counts)} values in {found.rows} rows."
    return _column(found, "label", others, default, note=note)


def _several(found: Look) -> tuple[Column, str] | None:
    """A column whose rows may have several classes, and what parts them: "" = each is a list."""
    named = {str(column.name).strip().lower(): column for column in found.columns}
    for column in (named[name] for name in LABELS if name in named):
        if column.values and all(isinstance(value, list) for value in column.values):
            return column, ""
        texts = [value for value in column.values if isinstance(value, str)]
        if len(texts) < len(column.values) or not texts:
            continue
        if all(part.startswith(MARK) for text in texts for part in text.split()):
            return column, " "
        for separator in SPLITS:
            parts = Counter(part.strip() for text in texts for part in text.split(separator))
            often = sum(separator in text for text in texts) > 0.1 * len(texts)
            if often and len(parts) <= min(MANY_CLASSES, len(texts) / 4) and max(map(len, parts)) <= 40:
                return column, separator
    return None


def _flags(found: Look) -> list[str]:
    """Columns of 0 and 1, where there are three or more: a class each."""
    flags = [str(c.name) for c in found.columns if isinstance(c.name, str) and c.counts and set(c.counts) <= FLAGS]
    return flags if len(flags) >= 3 else []


FLAGS = {"0", "1", 0, 1}


def _by_name(columns: Sequence[Column], names: Sequence[str]) -> Column | None:
    named = {str(column.name).strip().lower(): column for column in columns}
    return next((named[name] for name in names if name in named), None)


def _pair(found: Look) -> tuple[Column, Column] | None:
    for first, second in PAIRS:
        one, two = found.column(first), found.column(second)
        if one is not None and two is not None:
            return one, two
    return None
