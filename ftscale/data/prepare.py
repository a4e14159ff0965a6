"""Prepared data sets: rows read and tokenised once, kept as Arrow files under a hash of content and settings."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ftscale.base.errors import UserError, counted
from ftscale.base.logs import log
from ftscale.base.seeding import derive_seed
from ftscale.base.shown import without_secrets
from ftscale.base.signals import leave_signals_to_parent
from ftscale.config.schema import DataConfig, SourceConfig
from ftscale.data.cache import cached, place_of
from ftscale.data.heard import heard, say_once
from ftscale.data.order import SourceRows
from ftscale.data.sample import GROUP, LABEL, WHERE, Sample
from ftscale.data.sources import read_rows, source_fingerprint
from ftscale.data.store import Store, read_inputs, read_numbers, read_samples

FORMAT = 7  # of the files below; a new number makes old caches unread
CHUNK = 1000  # rows prepared at a time; also what `prepare` sees as neighbours

Roles = Sequence[Sequence[str]]
Prepare = Callable[[list[dict[str, Any]]], list[Sample]]


@dataclass
class SourceReport:
    """What became of the rows of a source."""

    path: str
    read: int = 0
    used: int = 0
    """Rows that a kept sample was made of, alone or with others."""
    kept: int = 0
    truncated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    longest: int = 0
    total_length: int = 0
    targets: int = 0
    """Of the samples that are kept, each of which has one at least; 0 = they are known in the batches only."""
    said: int = 0
    """Characters of the model's turns of chats, white space aside."""
    left_out: int = 0
    """Of these, the ones that the chat template leaves out."""
    unseen_prompt: str = ""
    """What the template's generation prompt ends with where a chat does not, e.g. an opened tag; "" = nothing."""
    blank: int = 0
    """Rows with a text of white space alone that were kept."""
    lost: int = 0
    """Words of rows that were kept whole that have no token."""
    in_tokens: bool = True
    """Whether samples have a length in tokens."""
    by_row: bool = True
    """Whether each row made one sample, so that `kept` are rows too."""

    @property
    def mean_length(self) -> float:
        """Return the mean length of the kept samples in tokens; 0 where none is kept."""
        return self.total_length / self.kept if self.kept else 0.0

    def sentence(self) -> str:
        """One line for the log."""
        dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items())) or "none"
        kept = f"{self.kept} kept" if self.by_row else f"{counted(self.kept, 'sample')} made of them"
        line = f"{self.path}: {counted(self.read, 'row')} read, {kept}, "
        if not self.in_tokens:
            return f"{line}dropped: {dropped}"
        targets = f", {counted(self.targets, 'target')}" if self.targets or not self.kept else ""
        return (
            f"{line}{self.truncated} truncated, dropped: {dropped}; longest {self.longest}, mean "
            f"{self.mean_length:.1f} tokens{targets}"
        )


def template_warnings(report: SourceReport, *, setting: str) -> list[str]:
    """What a chat template did that is likely not meant, with the way out."""
    warnings = []
    if report.left_out:
        warnings.append(
            f"{setting}: the chat template leaves out {report.left_out} of {report.said} characters that the model's "
            f"turns hold ({report.left_out / report.said:.1%}), as reasoning or tool calls: they are never learned. "
            "Set task.chat_template to one that writes them, or take them out of the rows."
        )
    if report.unseen_prompt:
        warnings.append(
            f"{setting}: the template's generation prompt ends with {report.unseen_prompt!r}, which training does not "
            "see: whoever asks the model with it gets what was never learned. Begin the model's turns with it, or set "
            "task.chat_template to one whose prompt ends where the turns begin."
        )
    return warnings


@dataclass
class Prepared:
    """A prepared data set: the samples, source after source."""

    dataset: Any
    """Rows of stored samples (`Sample.stored`) without the numbers that stand below, a datasets.Dataset."""
    sources: list[SourceRows]
    reports: list[SourceReport]
    samples_hash: str
    """A hash of the samples, equal wherever equal rows were prepared alike."""
    costs: np.ndarray
    """(samples,) int: what micro-batches are cut by."""
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    """(samples,) int: targets by term; empty where they are known in the batch only."""
    inputs: np.ndarray = field(default_factory=partial(np.empty, 0, dtype=np.int64))
    """(samples,) int64, sorted: a hash of what the model reads of each (`census.content_of`); empty where samples are
    joined from several rows."""
    contradicting: int = 0
    """Rows whose input another one has with another outcome."""
    folder: Path | None = None
    """Where it lies in the cache; None = nowhere."""
    computed: dict[str, np.ndarray] = field(default_factory=dict)
    """(samples, ...) by name: what was computed of the samples (data/computed.py)."""

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def labels(self) -> list[Any]:
        """Each sample's label; none where they have none."""
        return self.dataset[LABEL] if LABEL in self.dataset.column_names else []

    @property
    def groups(self) -> list[str]:
        """The columns of the user's that stand beside the samples (`evaluation.groups`)."""
        return [name.removeprefix(GROUP) for name in self.dataset.column_names if name.startswith(GROUP)]

    def group(self, name: str) -> Any:
        """What each sample's row has in a column of `groups`, an Arrow array of texts."""
        return self.dataset.data.column(f"{GROUP}{name}")

    def label_counts(self) -> dict[Any, int]:
        """How many samples have each label, first come first; each item of labels that are lists counts."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if LABEL not in self.dataset.column_names:
            return {}
        column = self.dataset.data.column(LABEL)
        if pa.types.is_list(column.type):
            column = pc.list_flatten(column)
        return {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}

    @cached_property
    def _collated(self) -> Any:
        return self.dataset.remove_columns(WHERE)

    def sample(self, number: int, *, epoch: int = 0, seed: int = 0) -> Sample:
        """A sample as it is collated."""
        sample = Sample.of_stored(self._collated[number], number=number, epoch=epoch, seed=seed)
        sample.extra = {name: values[number] for name, values in self.computed.items()}
        return sample

    def where(self, number: int) -> str:
        """Where the row of a sample was read: file and line."""
        return self.dataset[number][WHERE]


def prepare_sources(
    sources: Sequence[SourceConfig],
    prepare: Prepare,
    *,
    name: str,
    key: str,
    roles: Roles,
    data: DataConfig,
    in_tokens: bool = True,
    keep: Callable[[int, int], bool] | None = None,
    fingerprints: Sequence[str] | None = None,
) -> Prepared:
    """Read and prepare sources, or take them from the cache, whose content is verified.

    `prepare`: rows to samples, for rows of one source; `key`: everything that its result depends on besides the rows;
    `in_tokens`: whether a sample's cost is its tokens; `keep(source, row)`: which rows belong to this part of a split
    (part of `key`); `fingerprints`: those of the sources, where they are known. Only one process of a machine prepares;
    others wait for it.
    Raises UserError: unreadable files; no rows left; too many rows without a target (`data.max_empty`).
    """
    if fingerprints is None:
        fingerprints = source_fingerprints(sources, name=name, roles=roles)
    folder = place_of(data, [FORMAT, name, key, fingerprints])
    build = partial(_build, sources, prepare, name=name, roles=roles, data=data, in_tokens=in_tokens, keep=keep)
    saved = cached(folder, lambda empty: build(empty=empty))
    prepared = _load(folder, sources, saved)
    for sentence in saved["said"]:
        say_once(sentence)
    for report in prepared.reports:
        log.info("data.%s %s", name, report.sentence())
        for warning in template_warnings(report, setting=f"data.{name}"):
            log.warning("%s", warning)
    if problems := part_problems(prepared.reports, name=name, data=data):
        raise UserError(*problems)
    return prepared


def source_fingerprints(sources: Sequence[SourceConfig], *, name: str, roles: Roles) -> list[str]:
    """`source_fingerprint` of each source of `data.name`."""
    return [
        source_fingerprint(source, setting=f"data.{name}[{index}]", roles=roles) for index, source in enumerate(sources)
    ]


def processor_key(processor: Any) -> str:
    """A digest of what a tokenizer or image processor, or one that is made of several such, does with its input."""
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    if isinstance(processor, PreTrainedTokenizerBase):
        parts = [type(processor).__name__, str(processor.chat_template), str(sorted(processor.get_vocab().items()))]
        parts += [json.dumps(processor.special_tokens_map, default=str, sort_keys=True)]
        parts += [str((processor.model_max_length, processor.truncation_side, processor.split_special_tokens))]
        if processor.is_fast:
            state = json.loads(processor.backend_tokenizer.to_str())
            # as its last use left them: a rank that took prepared rows from the cache has used it for nothing
            del state["truncation"], state["padding"]
            parts.append(json.dumps(state))
    elif isinstance(processor, ProcessorMixin):  # whose own JSON has no vocabulary
        parts = [processor_key(getattr(processor, name)) for name in processor.get_attributes()]
        parts.append(processor.to_json_string())
    else:
        parts = [processor.to_json_string()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def split_rows(
    sources: Sequence[SourceConfig],
    *,
    data: DataConfig,
    roles: Roles,
    seed: int,
    is_used: Callable[[dict[str, Any]], bool] = lambda row: True,
) -> list[set[int]]:
    """The rows of each source that `data.eval_ratio` holds out, drawn with a seed, stratified where asked.

    Drawn among those that `is_used` takes: others are left out anyway.
    """
    from sklearn.model_selection import train_test_split

    held = []
    for index, source in enumerate(sources):
        number, used, strata = -1, [], []  # not the rows themselves, which may be many
        for number, row in enumerate(read_rows(source, roles=roles, setting=f"data.train[{index}]")):
            if number == 0 and data.stratify and data.stratify not in row:
                raise UserError(
                    f"data.stratify = {data.stratify!r} is not a column the task reads; "
                    f"name one of {', '.join(sorted(name for name in row if not name.startswith('_')))}."
                )
            if is_used(row):
                used.append(number)
                if data.stratify:
                    strata.append(str(row[data.stratify]))
        try:
            _, evaluation = train_test_split(
                used,
                test_size=data.eval_ratio,
                stratify=strata if data.stratify else None,
                random_state=derive_seed(seed, "split") % 2**32,
            )
        except ValueError as error:
            raise UserError(
                f"data.eval_ratio = {data.eval_ratio} cannot split the {counted(number + 1, 'row')} of {source.path}: "
                f"{error} Change the ratio, or name a file in data.eval."
            ) from error
        held.append(set(evaluation))
    return held


def _build(
    sources: Sequence[SourceConfig],
    prepare: Prepare,
    *,
    name: str,
    roles: Roles,
    data: DataConfig,
    in_tokens: bool,
    keep: Callable[[int, int], bool] | None,
    empty: Path,
) -> dict[str, Any]:
    reports, store = [], Store(empty)
    with Workers(prepare, data.prepare_workers) as workers, heard() as said:
        for index, source in enumerate(sources):
            rows: Iterable[dict[str, Any]] = read_rows(source, roles=roles, setting=f"data.{name}[{index}]")
            if keep is not None:
                rows = (row for number, row in enumerate(rows) if keep(index, number))
            report = SourceReport(without_secrets(source.path), in_tokens=in_tokens)
            store.write(_file_of(index), (sift(chunk, report) for chunk in workers.prepare(rows)))
            reports.append(asdict(report))
    return {"sources": reports, "said": said, **store.close()}


def _file_of(source: int) -> str:
    return f"source-{source}.arrow"


def _load(folder: Path, sources: Sequence[SourceConfig], saved: dict[str, Any]) -> Prepared:
    reports, spans, start = [SourceReport(**about) for about in saved["sources"]], [], 0
    for source, report in zip(sources, reports, strict=True):
        spans.append(SourceRows(start, start + report.kept, source.weight))
        start += report.kept
    dataset = read_samples(folder, [_file_of(index) for index, report in enumerate(reports) if report.kept])
    costs, counts = read_numbers(folder, saved["numbers"])
    inputs, contradicting = read_inputs(folder), saved["contradicting"]
    return Prepared(dataset, spans, reports, saved["samples"], costs, counts, inputs, contradicting, folder)


class Workers:
    """Processes that prepare rows, started for the first source of more than one chunk; a start takes seconds."""

    def __init__(self, prepare: Prepare, number: int) -> None:
        self._prepare = prepare
        self._number = number
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=kind is not None)

    def prepare(self, rows: Iterable[dict[str, Any]]) -> Iterator[list[Sample]]:
        """Samples of the rows, a chunk at a time, in the rows' order."""
        rows = iter(rows)
        chunks = iter(lambda: list(islice(rows, CHUNK)), [])
        if self._number == 1:
            return map(self._prepare, chunks)
        first = list(islice(chunks, 2))
        if len(first) < 2:
            return map(self._prepare, first)
        return self._by_processes(chain(first, chunks))

    def _by_processes(self, chunks: Iterator[list[dict[str, Any]]]) -> Iterator[list[Sample]]:
        if self._pool is None:
            # spawn: forking after a tokenizer's threads have started can deadlock
            context = get_context("spawn")
            self._pool = ProcessPoolExecutor(self._number, context, initializer=leave_signals_to_parent)
        pending: deque[Future[list[Sample]]] = deque()
        for chunk in chunks:
            pending.append(self._pool.submit(self._prepare, chunk))
            if len(pending) > 2 * self._number:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def sift(samples: Sequence[Sample], report: SourceReport) -> list[Sample]:
    """The samples to keep; counts all of them."""
    kept: list[Sample] = []
    rows: set[int] = set()
    used: set[int] = set()
    for place, sample in enumerate(samples):
        facts = sample.facts
        own = range(*sample.rows or (place, place + 1))
        rows.update(own)
        report.by_row = report.by_row and sample.rows is None
        report.said += facts.get("said", 0)
        report.left_out += facts.get("left_out", 0)
        report.unseen_prompt = report.unseen_prompt or facts.get("unseen_prompt", "")
        if sample.drop:
            report.dropped[sample.drop] = report.dropped.get(sample.drop, 0) + 1
            continue
        kept.append(sample)
        used.update(own)
        report.blank += facts.get("blank", False)
        report.lost += facts.get("lost", 0)
        report.truncated += sample.truncated
        report.longest = max(report.longest, sample.cost)
        report.total_length += sample.cost
        report.targets += sample.targets
    report.kept += len(kept)
    report.read += len(rows)
    report.used += len(used)
    return kept


def part_problems(reports: Sequence[SourceReport], *, name: str, data: DataConfig) -> list[str]:
    """What is wrong with what became of the rows of a part: too many without a target, or none left to use."""
    problems = []
    for index, report in enumerate(reports):
        empty = report.dropped.get("no_target", 0)
        if name == "train" and report.read and empty / report.read > data.max_empty:
            problems.append(
                f"data.{name}[{index}]: {empty} of {counted(report.read, 'row')} have no target left, more than "
                f"data.max_empty = {data.max_empty:.1%} ({empty / report.read:.1%} of {report.path}); look at the "
                "columns and task.max_length, or raise data.max_empty."
            )
    if not any(report.kept for report in reports):
        dropped = sum((Counter(report.dropped) for report in reports), Counter())
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "none"
        read = counted(sum(report.read for report in reports), "row")
        problems.append(f"data.{name}: no row is left to use of {read}; dropped: {told}; look at the columns.")
    return problems
