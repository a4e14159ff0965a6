"""A BEIR folder: corpus.jsonl, queries.jsonl, and qrels/SPLIT.tsv with what is right for what.

Source: the folders of the BEIR benchmark, https://github.com/beir-cellar/beir (`GenericDataLoader`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ftscale.base.errors import UserError
from ftscale.config.schema import SourceConfig
from ftscale.data.formats.base import DataFile, Place, Record
from ftscale.data.formats.delimited import records as table_records
from ftscale.data.formats.json_lines import records as json_records
from ftscale.data.formats.splits import same_split, split_for

CORPUS, QUERIES, JUDGED = "corpus.jsonl", "queries.jsonl", "qrels"
COLUMNS = ("anchor", "positive", "score", "query_id", "document_id")


def is_beir(folder: str) -> bool:
    """Whether a folder has the files of one."""
    return all(os.path.exists(os.path.join(folder, name)) for name in (CORPUS, QUERIES, JUDGED))


def paths_of(source: SourceConfig, folder: str, *, setting: str) -> tuple[str, ...]:
    """The judgements of the split that is asked for, and the texts. Raises UserError where one is to be chosen."""
    files = {path.stem: str(path) for path in sorted(Path(folder, JUDGED).glob("*.tsv"))}
    if not files:
        raise UserError(f"{setting}.path = {source.path!r} has no {JUDGED}/SPLIT.tsv; put the judgements there.")
    split = next(iter(files)) if source.split is None and len(files) == 1 else same_split(source.split or "", files)
    if split is None:
        wish = f"split = {source.split!r} is none of" if source.split else f"path = {source.path!r} holds"
        choice = split_for(setting, {name: [path] for name, path in files.items()})
        raise UserError(f"{setting}.{wish} the splits {', '.join(files)}; set {setting}.split: {choice}.")
    return (files[split], os.path.join(folder, CORPUS), os.path.join(folder, QUERIES))


def columns(file: DataFile) -> tuple[str, ...]:
    """The query as `anchor`, the document as `positive`, the judgement as `score`, and the names of both texts."""
    return COLUMNS


def records(file: DataFile, *, place: Place | None, wanted: Sequence[int]) -> Iterator[Record]:
    """One record a judgement; but for training also one for each document that nobody judged, with no anchor.

    A place is `{"record": n}`. The texts that are judged are held in memory.
    """
    start = place["record"] if place else 0
    for number, (values, where) in enumerate(_rows(file), 1):
        if number > start:
            yield [values[column] for column in wanted], where, {"record": number}


def _rows(file: DataFile) -> Iterator[tuple[tuple[object, ...], str]]:
    judgements, corpus, queries = file.paths
    judged = list(_judged(file))
    texts = dict(_texts(file, queries, {query for query, *_ in judged}))
    documents = dict(_texts(file, corpus, {document for _, document, *_ in judged}))
    for query, document, score, where in judged:
        for name, known, path in ((query, texts, queries), (document, documents, corpus)):
            if name not in known:
                raise file.error(
                    f"has {name!r}, which is not in {path}; mend the row.", line=int(where.rpartition(":")[2])
                )
        yield (texts[query], documents[document], score, query, document), where
    if file.setting.startswith("data.train"):
        return
    for name, text, where in _objects(file, corpus):
        if name not in documents:
            yield (None, text, 0, None, name), where


def _judged(file: DataFile) -> Iterator[tuple[str, str, str, str]]:
    """Names of query and document, score, and place."""
    table = replace(file, format="tsv", source=file.source.model_copy(update={"header": False}))
    for values, where, _ in table_records(table, place=None, wanted=range(3)):
        if where.endswith(":1") and not str(values[2]).lstrip("-").isdigit():  # the header
            continue
        yield str(values[0]), str(values[1]), str(values[2]), where


def _texts(file: DataFile, path: str, names: set[str]) -> Iterator[tuple[str, str]]:
    return ((name, text) for name, text, _ in _objects(file, path) if name in names)


def _objects(file: DataFile, path: str) -> Iterator[tuple[str, str, str]]:
    """Name, text with its title before it, and place."""
    lines = replace(file, paths=(path,), format="jsonl")
    for value, where, _ in json_records(lines, place=None, wanted=()):
        if "_id" not in value or "text" not in value:
            raise lines.error("has no `_id` or no `text`; write both.", line=int(where.rpartition(":")[2]))
        yield str(value["_id"]), f"{value.get('title') or ''} {value['text']}".strip(), where
