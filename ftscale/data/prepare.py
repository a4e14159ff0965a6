"""Prepared data sets: rows read and tokenised once, kept as Arrow files under a hash of content and settings."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ftscale.base.errors import UserError, counted
from ftscale.base.files import own_id, partial_path, remove, remove_partials, without_link
from ftscale.base.hashing import hash_file
from ftscale.base.logs import log
from ftscale.base.sealed import DamagedError, read_json, write_json
from ftscale.base.seeding import derive_seed
from ftscale.base.shown import without_secrets
from ftscale.base.signals import leave_signals_to_parent
from ftscale.config.schema import DataConfig, SourceConfig
from ftscale.data.order import SourceRows
from ftscale.data.sample import COST, COUNT, HASHES, LABEL, WHERE, Sample
from ftscale.data.sources import read_rows, source_fingerprint

FORMAT = 6  # of the files below; a new number makes old caches unread
REPORT = "report.json"
CHUNK = 1000  # rows prepared at a time; also what `prepare` sees as neighbours

Roles = Sequence[Sequence[str]]
Prepare = Callable[[list[dict[str, Any]]], list[Sample]]


@dataclass
class SourceReport:
    """What became of the rows of a source."""

    path: str
    read: int = 0
    kept: int = 0
    truncated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    longest: int = 0
    total_length: int = 0
    targets: int = 0
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

    @property
    def mean_length(self) -> float:
        """Return the mean length of the kept samples in tokens; 0 where none is kept."""
        return self.total_length / self.kept if self.kept else 0.0

    def sentence(self) -> str:
        """One line for the log."""
        dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items())) or "none"
        line = f"{self.path}: {counted(self.read, 'row')} read, {self.kept} kept, "
        if not self.in_tokens:
            return f"{line}dropped: {dropped}"
        return (
            f"{line}{self.truncated} truncated, dropped: {dropped}; longest {self.longest}, mean "
            f"{self.mean_length:.1f} tokens, {counted(self.targets, 'target')}"
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
    """Rows of stored samples (`Sample.stored`), a datasets.Dataset."""
    sources: list[SourceRows]
    reports: list[SourceReport]
    samples_hash: str
    """A hash of the samples, equal wherever equal rows were prepared alike."""
    row_hashes: np.ndarray
    """(samples, 2) int64: hashes of each one's input and of its whole row (`census.content_of`); empty where samples
    are joined from several rows."""
    folder: Path | None = None
    """Where it lies in the cache; None = nowhere."""
    computed: dict[str, np.ndarray] = field(default_factory=dict)
    """(samples, ...) by name: what was computed of the samples (data/computed.py)."""

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def costs(self) -> np.ndarray:
        """(samples,) int: what micro-batches are cut by."""
        return np.asarray(self.dataset[COST])

    @cached_property
    def counts(self) -> dict[str, np.ndarray]:
        """(samples,) int: targets by term; empty where they are known in the batch only."""
        names = [name for name in self.dataset.column_names if name.startswith(COUNT)]
        return {name.removeprefix(COUNT): np.asarray(self.dataset[name]) for name in names}

    @property
    def labels(self) -> list[Any]:
        """Each sample's label; none where they have none."""
        return self.dataset[LABEL] if LABEL in self.dataset.column_names else []

    @cached_property
    def _collated(self) -> Any:
        counted = [name for name in self.dataset.column_names if name in (COST, WHERE) or name.startswith(COUNT)]
        return self.dataset.remove_columns(counted)

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
) -> Prepared:
    """Read and prepare sources, or take them from the cache, whose content is verified.

    `prepare`: rows to samples, for rows of one source; `key`: everything that its result depends on besides the rows;
    `in_tokens`: whether a sample's cost is its tokens; `keep(source, row)`: which rows belong to this part of a split
    (part of `key`). Only one process of a machine prepares; others wait for it.
    Raises UserError: unreadable files; no rows left; too many rows without a target (`data.max_empty`).
    """
    from filelock import FileLock

    fingerprints = [
        source_fingerprint(source, setting=f"data.{name}[{index}]", roles=roles) for index, source in enumerate(sources)
    ]
    digest = hashlib.sha256(json.dumps([FORMAT, name, key, fingerprints]).encode()).hexdigest()[:24]
    folder = cache_folder(data).resolve() / digest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(without_link(folder.with_name(f"{digest}.lock"))):
        check_owner(folder)
        if (saved := _verified(folder)) is None:
            _build(folder, sources, prepare, name=name, roles=roles, data=data, in_tokens=in_tokens, keep=keep)
            saved = _verified(folder)
    assert saved is not None, f"{folder} was written just now"
    prepared = _load(folder, sources, saved)
    for report in prepared.reports:
        log.info("data.%s %s", name, report.sentence())
        for warning in template_warnings(report, setting=f"data.{name}"):
            log.warning("%s", warning)
    if problems := part_problems(prepared.reports, name=name, data=data):
        raise UserError(*problems)
    return prepared


def cache_folder(data: DataConfig) -> Path:
    """Return the folder of prepared data: `data.cache_dir`, else one in the user's home."""
    return Path(data.cache_dir).expanduser() if data.cache_dir else Path.home() / ".cache" / "ftscale"


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
        rows = list(read_rows(source, roles=roles, setting=f"data.train[{index}]"))
        strata = None
        if data.stratify:
            if data.stratify not in rows[0]:
                raise UserError(
                    f"data.stratify = {data.stratify!r} is not a column the task reads; "
                    f"name one of {', '.join(sorted(name for name in rows[0] if not name.startswith('_')))}."
                )
            strata = [str(row[data.stratify]) for row in rows if is_used(row)]
        try:
            _, evaluation = train_test_split(
                [number for number, row in enumerate(rows) if is_used(row)],
                test_size=data.eval_ratio,
                stratify=strata,
                random_state=derive_seed(seed, "split") % 2**32,
            )
        except ValueError as error:
            raise UserError(
                f"data.eval_ratio = {data.eval_ratio} cannot split the {counted(len(rows), 'row')} of {source.path}: "
                f"{error} Change the ratio, or name a file in data.eval."
            ) from error
        held.append(set(evaluation))
    return held


def _build(
    folder: Path,
    sources: Sequence[SourceConfig],
    prepare: Prepare,
    *,
    name: str,
    roles: Roles,
    data: DataConfig,
    in_tokens: bool,
    keep: Callable[[int, int], bool] | None,
) -> None:
    remove_partials(folder)
    partial = partial_path(folder)
    partial.mkdir(mode=0o700)
    reports, files, samples = [], {}, xxhash.xxh3_128()
    with Workers(prepare, data.prepare_workers) as workers:
        for index, source in enumerate(sources):
            rows: Iterable[dict[str, Any]] = read_rows(source, roles=roles, setting=f"data.{name}[{index}]")
            if keep is not None:
                rows = (row for number, row in enumerate(rows) if keep(index, number))
            report = SourceReport(without_secrets(source.path), in_tokens=in_tokens)
            path = partial / f"source-{index}.arrow"
            _write(path, (sift(chunk, report) for chunk in workers.prepare(rows)), samples)
            reports.append(asdict(report))
            files[path.name] = hash_file(path)
    write_json(partial / REPORT, {"sources": reports, "files": files, "samples": samples.hexdigest()})
    remove(folder)
    os.rename(partial, folder)


def _verified(folder: Path) -> dict[str, Any] | None:
    """The report of a prepared folder whose files are as they were written; None: there is none, or it is damaged."""
    if not folder.is_dir():
        return None
    try:
        report = read_json(folder / REPORT, needs_hash=True)
        intact = all(hash_file(folder / name) == known for name, known in report["files"].items())
    except (OSError, DamagedError):
        intact = False
    if intact:
        return report
    log.warning("the prepared data in %s is damaged or was changed: it is prepared anew", folder)
    return None


def check_owner(folder: Path) -> None:
    """Raise UserError where another user wrote the folder: a hash proves no origin."""
    if folder.exists() and folder.stat().st_uid != own_id(folder.parent):
        raise UserError(
            f"data.cache_dir: the prepared data in {folder} was written by another user, who may have changed it; "
            "set data.cache_dir to a folder of your own."
        )


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
    kept = []
    for sample in samples:
        facts = sample.facts
        report.read += 1
        report.said += facts.get("said", 0)
        report.left_out += facts.get("left_out", 0)
        report.unseen_prompt = report.unseen_prompt or facts.get("unseen_prompt", "")
        if sample.drop:
            report.dropped[sample.drop] = report.dropped.get(sample.drop, 0) + 1
            continue
        kept.append(sample)
        report.blank += facts.get("blank", False)
        report.lost += facts.get("lost", 0)
        report.truncated += sample.truncated
        report.longest = max(report.longest, sample.cost)
        report.total_length += sample.cost
        report.targets += sample.targets
    report.kept += len(kept)
    return kept


def _write(path: Path, chunks: Iterator[list[Sample]], content: xxhash.xxh3_128) -> None:
    """Samples as an Arrow stream; what is in them goes into the hash `content` too."""
    import pyarrow as pa

    writer = None
    with pa.OSFile(str(path), "wb") as sink:
        for chunk in chunks:
            if not chunk:
                continue
            stored = [sample.stored() for sample in chunk]
            schema = writer[1] if writer else pa.schema(map(_narrow, pa.Table.from_pylist(stored).schema))
            table = pa.Table.from_pylist(stored, schema=schema)
            writer = writer or (pa.ipc.new_stream(sink, schema), schema)
            writer[0].write_table(table)
            for column in sorted(table.column_names):
                if column not in (WHERE, HASHES) and not column.endswith("_path"):  # not of places
                    _add_column(content, column, table.column(column))
        if writer:
            writer[0].close()


def _add_column(content: xxhash.xxh3_128, name: str, column: Any) -> None:
    content.update(f"{name} {column.type} {len(column)}\0".encode())
    for chunk in column.chunks:
        for buffer in chunk.buffers():
            content.update(buffer or b"")


def _narrow(item: Any) -> Any:
    """Lists of token ids as int32: half the bytes."""
    import pyarrow as pa

    if item.name == HASHES:
        return item
    if pa.types.is_struct(item.type):
        return pa.field(
            item.name, pa.struct([_narrow(item.type.field(place)) for place in range(item.type.num_fields)])
        )
    return pa.field(item.name, pa.list_(pa.int32())) if item.type == pa.list_(pa.int64()) else item


def _load(folder: Path, sources: Sequence[SourceConfig], saved: dict[str, Any]) -> Prepared:
    from datasets import Dataset, concatenate_datasets

    reports = [SourceReport(**about) for about in saved["sources"]]
    parts, hashes, spans, start = [], [np.empty((0, 2), dtype=np.int64)], [], 0
    for index, (source, report) in enumerate(zip(sources, reports, strict=True)):
        if report.kept:
            part = Dataset.from_file(str(folder / f"source-{index}.arrow"))
            if HASHES in part.column_names:
                chunks = part.data.column(HASHES).chunks
                hashes += [chunk.flatten().to_numpy().reshape(-1, 2) for chunk in chunks]
                part = part.remove_columns(HASHES)
            parts.append(part)
        spans.append(SourceRows(start, start + report.kept, source.weight))
        start += report.kept
    whole = concatenate_datasets(parts) if parts else []
    return Prepared(whole, spans, reports, saved["samples"], np.concatenate(hashes), folder)


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
