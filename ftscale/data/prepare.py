"""Prepared data sets: rows read and tokenised once, kept as Arrow files under a hash of content and settings."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ftscale.config.schema import DataConfig, SourceConfig
from ftscale.data.order import SourceRows
from ftscale.data.sources import read_rows, source_fingerprint
from ftscale.errors import UserError
from ftscale.files import partial_path, remove, remove_partials, without_link
from ftscale.logs import log
from ftscale.processes import leave_signals_to_parent
from ftscale.seeding import derive_seed
from ftscale.shown import without_secrets

FORMAT = 2  # of the files below; a new number makes old caches unread
CHUNK = 1000  # rows prepared at a time; also what `prepare` sees as neighbours

Roles = Sequence[Sequence[str]]
Prepare = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


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

    @property
    def mean_length(self) -> float:
        return self.total_length / self.kept if self.kept else 0.0

    def sentence(self) -> str:
        """One line for the log."""
        dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items())) or "none"
        return (
            f"{self.path}: {self.read} rows read, {self.kept} kept, {self.truncated} truncated, dropped: {dropped}; "
            f"longest {self.longest}, mean {self.mean_length:.1f} tokens, {self.targets} targets"
        )


@dataclass
class Prepared:
    """A prepared data set: `dataset` holds the samples, source after source."""

    dataset: Any
    sources: list[SourceRows]
    reports: list[SourceReport]

    def __len__(self) -> int:
        return len(self.dataset)


def prepare_sources(
    sources: Sequence[SourceConfig],
    prepare: Prepare,
    *,
    name: str,
    key: str,
    roles: Roles,
    data: DataConfig,
    labelled: bool = True,
    keep: Callable[[int, int], bool] | None = None,
) -> Prepared:
    """Read and prepare sources, or take them from the cache.

    `prepare`: rows to samples, for rows of one source; `key`: everything that its result depends on besides the rows;
    `keep(source, row)`: which rows belong to this part of a split (part of `key`). Only one process of a machine
    prepares; others wait for it.
    Raises UserError: unreadable files; no rows left; too many rows without a target (`data.max_empty`).
    """
    from filelock import FileLock

    fingerprints = [source_fingerprint(source, setting=f"data.{name}[{index}]") for index, source in enumerate(sources)]
    digest = hashlib.sha256(json.dumps([FORMAT, name, key, labelled, fingerprints]).encode()).hexdigest()[:24]
    folder = cache_folder(data) / digest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(without_link(folder.with_name(f"{digest}.lock"))):
        if not (folder / "report.json").is_file():
            _build(folder, sources, prepare, name=name, roles=roles, data=data, labelled=labelled, keep=keep)
    prepared = _load(folder, sources)
    for report in prepared.reports:
        log.info("data.%s %s", name, report.sentence())
    _check(prepared, name=name, data=data)
    return prepared


def cache_folder(data: DataConfig) -> Path:
    """Where prepared data lies."""
    return Path(data.cache_dir).expanduser() if data.cache_dir else Path.home() / ".cache" / "ftscale"


def processor_key(processor: Any) -> str:
    """A digest of what a tokenizer or image processor does with its input."""
    from transformers import PreTrainedTokenizerBase

    if isinstance(processor, PreTrainedTokenizerBase):
        parts = [type(processor).__name__, str(processor.chat_template), str(sorted(processor.get_vocab().items()))]
        parts += [json.dumps(processor.special_tokens_map, default=str, sort_keys=True)]
        if processor.is_fast:
            parts.append(processor.backend_tokenizer.to_str())
    else:
        parts = [processor.to_json_string()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def split_rows(sources: Sequence[SourceConfig], *, data: DataConfig, roles: Roles, seed: int) -> list[set[int]]:
    """The rows of each source that `data.eval_ratio` holds out, drawn with a seed, stratified where asked."""
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
            strata = [str(row[data.stratify]) for row in rows]
        try:
            _, evaluation = train_test_split(
                range(len(rows)),
                test_size=data.eval_ratio,
                stratify=strata,
                random_state=derive_seed(seed, "split") % 2**32,
            )
        except ValueError as error:
            raise UserError(
                f"data.eval_ratio = {data.eval_ratio} cannot split the {len(rows)} rows of {source.path}: {error} "
                "Change the ratio, or name a file in data.eval."
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
    labelled: bool,
    keep: Callable[[int, int], bool] | None,
) -> None:
    remove_partials(folder)
    partial = partial_path(folder)
    partial.mkdir()
    reports = []
    for index, source in enumerate(sources):
        rows: Iterable[dict[str, Any]] = read_rows(
            source, roles=roles, setting=f"data.{name}[{index}]", labelled=labelled
        )
        if keep is not None:
            rows = (row for number, row in enumerate(rows) if keep(index, number))
        report = SourceReport(without_secrets(source.path))
        chunks = _prepared_chunks(rows, prepare, workers=data.prepare_workers)
        _write(partial / f"source-{index}.arrow", (sift(chunk, report) for chunk in chunks))
        reports.append(report)
    (partial / "report.json").write_text(json.dumps([asdict(report) for report in reports]))
    remove(folder)
    os.rename(partial, folder)


def _prepared_chunks(
    rows: Iterable[dict[str, Any]], prepare: Prepare, *, workers: int
) -> Iterator[list[dict[str, Any]]]:
    rows = iter(rows)
    chunks = iter(lambda: list(islice(rows, CHUNK)), [])
    if workers == 1:
        yield from map(prepare, chunks)
        return
    # spawn: forking after a tokenizer's threads have started can deadlock
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=leave_signals_to_parent) as pool:
        pending: deque[Future[list[dict[str, Any]]]] = deque()
        try:
            for chunk in chunks:
                pending.append(pool.submit(prepare, chunk))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def sift(samples: list[dict[str, Any]], report: SourceReport) -> list[dict[str, Any]]:
    """The samples to keep; counts all of them."""
    kept = []
    for sample in samples:
        note = sample.pop("note")
        report.read += 1
        if note not in ("", "truncated"):
            report.dropped[note] = report.dropped.get(note, 0) + 1
            continue
        kept.append(sample)
        report.truncated += note == "truncated"
        report.longest = max(report.longest, sample["length"])
        report.total_length += sample["length"]
        report.targets += sample["targets"]
    report.kept += len(kept)
    return kept


def _write(path: Path, chunks: Iterator[list[dict[str, Any]]]) -> None:
    import pyarrow as pa

    writer = None
    with pa.OSFile(str(path), "wb") as sink:
        for chunk in chunks:
            if not chunk:
                continue
            schema = writer[1] if writer else _narrow(pa.Table.from_pylist(chunk).schema)
            table = pa.Table.from_pylist(chunk, schema=schema)
            writer = writer or (pa.ipc.new_stream(sink, schema), schema)
            writer[0].write_table(table)
        if writer:
            writer[0].close()


def _narrow(schema: Any) -> Any:
    """Lists of token ids as int32: half the bytes."""
    import pyarrow as pa

    fields = [
        pa.field(item.name, pa.list_(pa.int32())) if item.type == pa.list_(pa.int64()) else item for item in schema
    ]
    return pa.schema(fields)


def _load(folder: Path, sources: Sequence[SourceConfig]) -> Prepared:
    from datasets import Dataset, concatenate_datasets

    reports = [SourceReport(**report) for report in json.loads((folder / "report.json").read_text())]
    parts, spans, start = [], [], 0
    for index, (source, report) in enumerate(zip(sources, reports, strict=True)):
        if report.kept:
            parts.append(Dataset.from_file(str(folder / f"source-{index}.arrow")))
        spans.append(SourceRows(start, start + report.kept, source.weight))
        start += report.kept
    return Prepared(concatenate_datasets(parts) if parts else [], spans, reports)


def _check(prepared: Prepared, *, name: str, data: DataConfig) -> None:
    problems = []
    for index, report in enumerate(prepared.reports):
        empty = report.dropped.get("no_target", 0)
        if name == "train" and report.read and empty / report.read > data.max_empty:
            problems.append(
                f"data.{name}[{index}]: {empty} of {report.read} rows of {report.path} have no target left "
                f"({empty / report.read:.1%}), more than data.max_empty = {data.max_empty:.1%}; look at the "
                "columns and task.max_length, or raise data.max_empty."
            )
    if not len(prepared):
        problems.append(f"data.{name}: no row is left to use; see the counts in the log lines above.")
    if problems:
        raise UserError(*problems)
