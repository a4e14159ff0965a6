"""A check's report as text: colours in a terminal, brackets around targets elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ftscale.base.errors import counted
from ftscale.base.shown import visible
from ftscale.checks.report import Report

LABELS_SHOWN = 12


def show(report: Report) -> None:
    """Print it, errors last, where they are seen."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for number, pieces in enumerate(report.rows, 1):
        console.print(Text(f"row {number}, targets {'coloured' if console.is_terminal else 'in [[ ]]'}:", style="bold"))
        text = Text()
        for piece, target in pieces:
            piece = visible(piece)  # of a stranger's data
            text.append(piece if console.is_terminal or not target else f"[[{piece}]]", "green" if target else "")
        console.print(text)
    for line in lines(report.facts):
        console.print(Text(visible(line)))
    for name, sentences, style in (("warning", report.warnings, "yellow"), ("error", report.errors, "red")):
        for sentence in sentences:
            console.print(Text(f"{name}: {sentence}", style=style))
    if not report.errors:
        console.print(Text(f"nothing wrong found; {counted(len(report.warnings), 'warning')}"))


def lines(facts: dict[str, Any]) -> list[str]:
    """The facts, a line each."""
    found: list[str] = []
    for name, stage in facts.get("stages", {}).items():
        found += [f"stage {name}", *(f"  {line}" for line in lines(stage))]
    for section in ("task", "method"):
        if settings := facts.get(section):
            found.append(f"{section}: " + ", ".join(f"{name} {value}" for name, value in settings.items()))
    for part in ("train", "eval", "test"):
        if part in facts.get("data", {}):
            found += _part_lines(f"data.{part}", facts["data"][part])
    if data := facts.get("data"):
        labels = list(data["label_distribution"].items())
        if labels:
            more = f" and {len(labels) - LABELS_SHOWN} more" if len(labels) > LABELS_SHOWN else ""
            found.append("labels: " + ", ".join(f"{name} {count}" for name, count in labels[:LABELS_SHOWN]) + more)
        if "overlap" in data:
            found.append(f"rows of data.eval that are in data.train too: {data['overlap']}")
        if "test_overlap" in data:
            found.append(f"rows of data.test that are in data.train too: {data['test_overlap']}")
    if tokenizer := facts.get("tokenizer"):
        name = "tokenizer" if "tokens" in tokenizer else "image processor"
        found.append(f"{name}: " + ", ".join(f"{name} {value}" for name, value in tokenizer.items()))
    if generation := facts.get("generation"):
        values = ", ".join(f"{name} {value}" for name, value in generation.items())
        found.append(f"generation: {values} (of the model's generation config, and task.generate.options over it)")
    if schedule := facts.get("schedule"):
        found += _schedule_lines(schedule)
    if steps := facts.get("steps"):
        found.append(f"two steps of {steps['model']} on {', '.join(_told(steps))}")
    found += [f"{row['name']}: {row['text']}" for row in facts.get("combination", ())]
    return found


def _told(steps: dict[str, Any]) -> Iterator[str]:
    lengths = f" ({' and '.join(map(str, steps['lengths']))} long)" if "lengths" in steps else ""
    yield f"the longest samples{lengths}"
    yield f"losses {' and '.join(f'{loss:.4f}' for loss in steps['losses'])}"
    if "seconds" in steps:
        yield f"{steps['seconds']:g} s"


def _part_lines(name: str, facts: dict[str, Any]) -> list[str]:
    of = "" if facts["rows"] == facts["rows_looked_at"] else f"{facts['rows_looked_at']} of {facts['rows']} rows"
    if facts["rows"] is None:
        of = f"the first {counted(facts['rows_looked_at'], 'row')}"
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(facts["dropped"].items())) or "none"
    line = f"{name}: {of or counted(facts['rows_looked_at'], 'row')} looked at, {facts['kept']} kept"
    ends = f"dropped: {dropped}, exact duplicates: {facts['duplicates']}"
    if "lengths" not in facts:  # images
        return [f"{line}, {ends}"]
    lengths = ", ".join(f"{key} {value:g}" for key, value in facts["lengths"].items())
    known = facts["targets"] or not facts["kept"]  # else in the batches only
    targets = f"{counted(facts['targets'], 'target')}, " if known else ""
    second = f"{name}: {targets}rows without {'one' if known else 'a target'}: {facts['no_target']}"
    if facts["share_of_targets"] is not None:
        second += f", {facts['share_of_targets']:.1%} of all tokens"
    if facts.get("end_supervised") is not None:
        second += f"; end token supervised in {facts['end_supervised']:.0%}"
    if "doubled_special_tokens" in facts:
        second += f"; special tokens doubled in {facts['doubled_special_tokens']}"
    if facts["blank"] or facts["contradicting"] or facts["words_without_token"]:
        second += (
            f"; blank texts: {facts['blank']}, equal inputs with other labels: {facts['contradicting']}, words without "
            f"a token: {facts['words_without_token']}"
        )
    if "unknown_tokens" in facts:
        second += f"; unknown tokens {facts['unknown_tokens']:.1%}"
    if "unwritable_targets" in facts:
        second += f"; targets with characters that the tokenizer cannot write: {facts['unwritable_targets']}"
    return [f"{line}, {facts['truncated']} truncated, {ends}", f"{name}: lengths {lengths}", second]


def _schedule_lines(facts: dict[str, Any]) -> list[str]:
    about = "" if facts["exact"] else " (estimated from the rows looked at)"
    found = [facts["batch"]]
    found.append(f"steps: {facts['steps_per_epoch']} an epoch, {facts['total_steps']} in all{about}")
    if "learning_rate" in facts:
        rates = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in facts["learning_rate"].items())
        found.append(f"learning rate: {rates}")
        found.append(f"evaluations: {facts['evaluations']}, checkpoints: {facts['checkpoints']}")
    return found
