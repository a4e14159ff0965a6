"""From rows to a run.yaml that `check` takes: task, columns, split, metric, length, batch, rate, and why each."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftscale.base.errors import UserError, counted, unknown_name
from ftscale.config.load import parse_config
from ftscale.config.tasks import SETTINGS
from ftscale.config.yaml_text import read_yaml
from ftscale.init.draft import Draft, words
from ftscale.init.look import MOST_ROWS, Column, Look, look_at
from ftscale.init.write import as_yaml, one_line

TEXTS = words(
    "text sentence sentence1 sentence_a premise content body review message headline title document utterance comment "
    "tweet question query abstract description sms"
)
LABELS = words(
    "label labels class category intent sentiment topic emotion gold_label entailment_judgment polarity stars target "
    "rating relatedness_score similarity score answer y"
)
PAIRS = (
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
)
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
CHATS = ("messages", "conversations")
MODELS = {  # by task: for English, and for other languages
    "text_classification": ("distilbert/distilroberta-base", "FacebookAI/xlm-roberta-base"),
    "token_classification": ("distilbert/distilbert-base-cased", "FacebookAI/xlm-roberta-base"),
    "causal_lm": ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
    "seq2seq": ("google-t5/t5-small", "google/mt5-small"),
    "image_classification": ("google/mobilenet_v1_0.75_192", "google/mobilenet_v1_0.75_192"),
}
TOKENS_A_WORD = 1.5
TOKENS_A_CHARACTER = 0.7
"""Of texts that are not English, whose words are cut more finely or not parted by blanks."""
IMBALANCE = 3.0
LONGEST = {"causal_lm": 2048}
MORE = 512


@dataclass(frozen=True)
class Guide:
    """A run.yaml for a file, and what its reader should look at."""

    text: str
    seen: str
    """What the file is, in a line."""
    unsure: tuple[str, ...]

    def told(self, out: Path) -> list[str]:
        """Say what was seen and written, and what is not sure, a line each."""
        lines = [self.seen, f"{out} is written; each line says why"]
        lines += ["not sure of:", *(f"  {item}" for item in self.unsure)] if self.unsure else []
        return [*lines, f"next: ftscale check {out}"]


def guide_to(path: Path, *, task: str | None = None, model: str | None = None) -> Guide:
    """Look at a file or folder and write settings for it. `model`: a hub id or folder; None = one that is usual.

    Raises UserError where the file cannot be read, or nothing tells the task and `task` is None.
    """
    if task is not None and task not in SETTINGS:
        raise UserError(unknown_name("--task", task, SETTINGS))
    found = look_at(path)
    draft = Draft("", path.name, {})
    name, columns, why = _task(found, task)
    draft.open += found.unsure
    draft.put("task.name", name, "--task" if task else why)
    draft.put(
        "run_folder", f"runs/{re.sub(r'[^A-Za-z0-9_-]+', '-', path.name.split('.')[0]) or 'run'}", "yours to name"
    )
    inputs = _inputs(found, columns)
    english = _is_english(inputs)
    _put_model(draft, name, model, english=english)
    _put_data(draft, found, name, columns)
    _put_length(draft, name, inputs, english=english)
    _put_training(draft, name, found.rows)
    seen = _seen(found, name, columns)
    return Guide(_written(draft, path, seen), seen, tuple(map(one_line, draft.open)))


def _written(draft: Draft, path: Path, seen: str) -> str:
    tail = [("Not sure, so look at:", draft.open)] if draft.open else []
    text = as_yaml(draft.lines, head=(seen, "Look it over, then: ftscale check run.yaml"), tail=tail)
    parse_config(read_yaml(text, source=str(path)), source=f"{path}, as settings of ftscale")
    return text


def _seen(found: Look, task: str, columns: dict[str, str | int]) -> str:
    mapped = ", ".join(f"{role} = {name}" for role, name in columns.items())
    about = ", ".join(dict.fromkeys(found.why)) or found.form
    return one_line(f"{found.path}: {about}; {_many(found)}; {task}{f' of {mapped}' if mapped else ''}")


def _many(found: Look) -> str:
    return f"{'more than ' if found.rows == MOST_ROWS else ''}{counted(found.rows, 'row')}"


# ---------------------------------------------------------------- task and columns


def _task(found: Look, asked: str | None) -> tuple[str, dict[str, str | int], str]:
    """The task, what its columns are called in the file, and why. Raises UserError where nothing tells it."""
    ways = {
        "image_classification": _images,
        "token_classification": _tagged,
        "causal_lm": _chat_or_text,
        "seq2seq": _source_and_target,
        "text_classification": _classes,
    }
    if asked is None and found.column("chosen") is not None and found.column("rejected") is not None:
        raise UserError(
            f"FILE = {found.path} has the columns chosen and rejected, preferences that ftscale does not learn from; "
            "give --task causal_lm to learn its other columns."
        )
    for name, way in ways.items():
        if asked in (None, name) and (answer := way(found, asked is not None)) is not None:
            return (name, *answer)
    names = ", ".join(str(column.name) for column in found.columns) or "none"
    if asked is not None:
        raise UserError(
            f"--task = {asked} does not fit {found.path}, whose columns are {names}; give another, or map them."
        )
    raise UserError(
        f"FILE = {found.path} does not tell its task by its columns ({names}); give --task {', '.join(ways)}."
    )


Answer = tuple[dict[str, "str | int"], str] | None


def _images(found: Look, asked: bool) -> Answer:
    if found.form in ("image_folder", "idx"):
        return {}, "images in folders of their classes" if found.form == "image_folder" else "images with their classes"
    return None


def _tagged(found: Look, asked: bool) -> Answer:
    if found.form == "conll":
        return {}, "a word with its tag a line"
    listed = [column for column in found.columns if column.values and all(isinstance(v, list) for v in column.values)]
    named = {str(column.name): column for column in listed}
    first = next((named[name] for name in ("words", "tokens") if name in named), None)
    second = next((named[name] for name in ("tags", "ner_tags", "labels", "pos_tags") if name in named), None)
    if first is None or second is None:
        return None
    columns: dict[str, str | int] = {"words": first.name, "tags": second.name}
    return {role: name for role, name in columns.items() if role != name}, "lists of words and of their tags"


def _chat_or_text(found: Look, asked: bool) -> Answer:
    for name in CHATS:
        if (column := found.column(name)) is not None and column.values and isinstance(column.values[0], list):
            return {}, f"a column {name} of turns"
    if found.column("instruction") is not None and found.column("output") is not None:
        return {}, "columns instruction and output"
    if found.column("prompt") is not None and found.column("completion") is not None:
        return {}, "columns prompt and completion"
    for first, second in WRITTEN[:5]:
        one, two = found.column(first), found.column(second)
        if one is not None and two is not None and two.is_text:
            return {"prompt": one.name, "completion": two.name}, f"columns {first} and {second}, both of texts"
    texts = [column for column in found.columns if column.is_text]
    if found.form == "text" or (len(found.columns) == 1 and texts) or (asked and texts):
        columns: dict[str, str | int] = {} if found.form == "text" else {"text": texts[0].name}
        return {role: name for role, name in columns.items() if role != name}, "plain texts"
    return None


def _source_and_target(found: Look, asked: bool) -> Answer:
    if found.form == "parallel":
        return {}, "two files of lines side by side"
    pairs = (("source", "target"), *WRITTEN)
    for first, second in pairs:
        one, two = found.column(first), found.column(second)
        if one is not None and two is not None and two.is_text:
            columns: dict[str, str | int] = {"source": one.name, "target": two.name}
            return {role: name for role, name in columns.items() if role != name}, f"columns {first} and {second}"
    texts = [column for column in found.columns if column.is_text]
    if asked and len(texts) >= 2:
        found.unsure.append(f"source and target are taken to be {texts[0].name} and {texts[1].name}, in this order.")
        return {"source": texts[0].name, "target": texts[1].name}, "two columns of texts"
    return None


def _classes(found: Look, asked: bool) -> Answer:
    label = _label(found)
    if label is None:
        return None
    texts = [column for column in found.columns if column.is_text and column is not label]
    if not texts:
        return None
    pair = _pair(found)
    first = pair[0] if pair else _by_name(texts, TEXTS) or max(texts, key=lambda column: column.words)
    columns: dict[str, str | int] = {"text": first.name, "label": label.name}
    if pair:
        columns["text_pair"] = pair[1].name
    elif len(texts) > 1:
        others = ", ".join(str(column.name) for column in texts if column is not first)
        found.unsure.append(f"the text is taken to be {first.name}; {others} hold texts as well, which are not read.")
    if _by_name([label], LABELS) is None:
        found.unsure.append(f"the label is taken to be {label.name}, by its few values.")
    columns = {role: name for role, name in columns.items() if role != name}
    return columns, "a text and its label" if not pair else "a pair of texts and its label"


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


def _by_name(columns: Sequence[Column], names: Sequence[str]) -> Column | None:
    named = {str(column.name).strip().lower(): column for column in columns}
    return next((named[name] for name in names if name in named), None)


def _pair(found: Look) -> tuple[Column, Column] | None:
    for first, second in PAIRS:
        one, two = found.column(first), found.column(second)
        if one is not None and two is not None:
            return one, two
    return None


# ---------------------------------------------------------------- settings


def _inputs(found: Look, columns: dict[str, str | int]) -> list[str]:
    """Texts that the model reads, for their length and language: of each row all of them together."""
    roles = ("text", "text_pair", "prompt", "completion", "source", "instruction", "input", "output", *CHATS)
    names = [columns.get(role, role) for role in roles]
    used = [column for name in dict.fromkeys(names) if (column := found.column(name)) is not None]
    used = used or [column for column in found.columns if column.is_text]
    return [" ".join(map(_plain, row)) for row in zip(*(column.values for column in used), strict=False)]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    return " ".join(map(_plain, value.values())) if isinstance(value, dict) else str(value)


def _is_english(texts: Sequence[str]) -> bool:
    """Whether most texts are of plain Latin letters and the commonest English words stand in them."""
    sample = " ".join(texts[:500]).lower()
    if not sample:
        return True
    plain = sum(character.isascii() for character in sample) / len(sample)
    tokens = re.findall(r"[a-z']+", sample)
    common = sum(token in {"the", "a", "of", "to", "and", "in", "is", "i", "it", "my", "for"} for token in tokens)
    return plain > 0.95 and common > 0.08 * max(1, len(tokens))


def _put_model(draft: Draft, task: str, model: str | None, *, english: bool) -> None:
    if model is not None:
        draft.put("model.name", model, "--model")
    else:
        name = MODELS[task][0 if english else 1]
        language = "" if task == "image_classification" else " for English" if english else " for many languages"
        draft.put("model.name", name, f"a small one{language}, on the hub; a folder does as well")
    if task == "causal_lm":
        draft.put("adapter.method", "lora", "keeps the base model and takes little memory")
        draft.put("adapter.r", 16, "enough for a few thousand rows")
        draft.put("adapter.lora_alpha", 32, "twice r, as is usual")
        draft.put("adapter.target_modules", "all-linear", "all linear layers but the head")


def _put_data(draft: Draft, found: Look, task: str, columns: dict[str, str | int]) -> None:
    """Set the sources: the splits that are there, else a share that is held out."""
    source: dict[str, Any] = {"path": str(found.path), **found.source}
    if columns:
        source["columns"] = columns
    draft.put(
        "data.train", source if len(source) > 1 else str(found.path), ", ".join(dict.fromkeys(found.why)) or found.form
    )
    others = {"eval": "validation", "test": "test"}
    own = found.path.is_dir() or found.splits.get("train") == [str(found.path)]
    for part, split in others.items():
        files = found.splits.get(split, [])
        if not own or not files:
            continue
        if found.path.is_dir():
            draft.put(f"data.{part}", {**source, "split": split}, "by the names of its files")
        elif len(files) == 1:
            other = {**source, "path": files[0]}
            draft.put(f"data.{part}", other if len(other) > 1 else files[0], "beside the file, by its name")
    label = found.column(columns.get("label", "label"))
    if draft.value("data.eval") is None:
        share = 0.1 if found.rows < 10_000 else 0.05
        draft.put("data.eval_ratio", share, f"of {_many(found)}; a file of evaluation rows under data.eval is better")
        if task == "text_classification" and label is not None and label.is_class and min(label.counts.values()) > 1:
            name = "label"
            draft.put("data.stratify", name, "keeps the shares of the classes in both parts")
    if task == "text_classification" and label is not None:
        _put_label(draft, label)


def _put_label(draft: Draft, label: Column) -> None:
    if not label.is_class:
        draft.put("task.problem", "regression", f"{label.name} holds numbers, not classes")
        return
    if label.is_number and len(label.counts) > 2:
        numbers = sorted(label.counts, key=float)
        draft.open.append(
            f"task.problem: the {len(numbers)} numbers of {label.name} ({numbers[0]} to {numbers[-1]}) are taken for "
            "classes; where their order counts, set regression."
        )
    most, least = max(label.counts.values()), min(label.counts.values())
    if most > IMBALANCE * least:
        why = f"the largest class has {most} rows, the smallest {least}: accuracy would hide the small ones"
        draft.put("evaluation.metric", "f1_macro", why)
    else:
        draft.put("evaluation.metric", "accuracy", f"{len(label.counts)} classes of like size")


def _put_length(draft: Draft, task: str, texts: Sequence[str], *, english: bool) -> None:
    """Set a length that nearly all rows fit into, by their words or characters."""
    if task == "image_classification" or not texts:
        return
    if english:
        lengths = sorted(len(text.split()) * TOKENS_A_WORD for text in texts)
    else:
        lengths = sorted(len(text) * TOKENS_A_CHARACTER for text in texts)
    common = lengths[min(len(lengths) - 1, math.ceil(0.99 * len(lengths)))]
    most = min(LONGEST.get(task, MORE), _positions(draft.value("model.name")))
    value = min(most, max(32, 32 * math.ceil((common + 8) / 32)))
    why = f"99 % of the rows have about {common:.0f} tokens or fewer, by their words"
    if task == "causal_lm" and draft.value("task.join_texts") is None and draft.lines["task.name"].why == "plain texts":
        draft.put("task.join_texts", True, "lines are laid end to end")
        value, why = min(512, most), "of lines laid end to end"
    draft.put("task.max_length", value, why)
    if common > most:
        draft.open.append(f"task.max_length = {value} cuts some rows; ftscale check counts them.")


def _positions(model: str) -> int:
    """The positions of a model in a folder, as its config.json says; no limit where that does not tell."""
    try:
        about = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        found = about.get("max_position_embeddings") or about.get("n_positions")
        taken = 2 if "roberta" in str(about.get("model_type")) else 0  # of padding: its positions begin after it
        return int(found) - taken if found else 2**31
    except (OSError, ValueError, TypeError, AttributeError):
        return 2**31


def _put_training(draft: Draft, task: str, rows: int) -> None:
    """Set batch, rate and epochs as they are usual for the model's kind and the number of rows."""
    size = 16 if rows < 2000 else 32
    draft.put("batch.global_size", size, "samples a step; 16 below 2000 rows, so that there are enough steps")
    if task == "causal_lm":
        draft.put("batch.micro_tokens", 4096, "tokens on the device at once; half of it where memory is short")
        draft.put("optimizer.lr", 2e-4, "usual for LoRA; all weights want 1e-5")
        draft.put("schedule.name", "cosine", "usual for LoRA")
    elif task == "image_classification":
        draft.put("optimizer.lr", 1e-3, "usual for small convolutional nets")
        draft.put("optimizer.head_lr", 3e-3, "a new head learns faster")
    elif task == "seq2seq":
        draft.put("optimizer.lr", 5e-4, "usual for T5; others want 5e-5")
    else:
        draft.put("optimizer.lr", 5e-5, "usual for encoders of this size")
    draft.put("schedule.warmup_ratio", 0.06, "steps to get going")
    few, more = (3, 1) if task == "causal_lm" else (10, 3)
    epochs = few if rows < 2000 else more
    draft.put("train.epochs", epochs, "passes over the rows; more of them below 2000 rows; evaluation keeps the best")
    if task == "causal_lm":
        draft.put("train.precision", "bf16", "half the memory of fp32")
