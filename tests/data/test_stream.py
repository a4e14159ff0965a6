from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import pytest

from ftscale.base.errors import UserError
from ftscale.config.schema import BatchConfig, DataConfig, SourceConfig
from ftscale.data.batching import Division, Ranks
from ftscale.data.sample import Sample
from ftscale.data.stream import StreamPosition, StreamSteps

ROLES = (("text",),)


def prepare(rows):
    """One token a character; the row's number is its first token."""
    return [
        Sample(
            {"ids": [int(row["text"].split("-")[0])]},
            cost=1 + len(row["text"]) % 5,
            counts={"loss": int("x" not in row["text"])},
            drop="no_target" if "x" in row["text"] else "",
            where=row["_where"],
        )
        for row in rows
    ]


def collate(samples):
    return {"ids": [sample.inputs["ids"][0] for sample in samples]}


def make(paths, *, rank=0, world_size=1, ranks=None, buffer=16, shuffle=True, weights=None, max_empty=0.01):
    sources = [
        SourceConfig(path=str(path), weight=weight)
        for path, weight in zip(paths, weights or [1.0] * len(paths), strict=True)
    ]
    return StreamSteps(
        DataConfig(train=tuple(sources), shuffle_buffer=buffer, shuffle=shuffle, max_empty=max_empty),
        prepare,
        collate,
        roles=ROLES,
        joins=False,
        division=Division(BatchConfig(global_size=6, micro_size=2), flat=False),
        ranks=Ranks(rank, world_size),
        seed=7,
        gather=ranks or (lambda value: [value]),
    )


def seen(step):
    return [number for batch, real in step.micro_batches if real for number in batch["ids"]]


@pytest.fixture
def files(tmp_path: Path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("".join(json.dumps({"text": f"{n}-{'y' * (n % 7)}"}) + "\n" for n in range(40)))
    second.write_text("".join(json.dumps({"text": f"{n}-{'y' * (n % 3)}"}) + "\n" for n in range(100, 120)))
    return [first, second]


def test_each_row_of_every_source_comes_once_an_epoch(files):
    steps = make(files).steps(StreamPosition())
    rows = [number for step in islice(steps, 10) for number in seen(step)]
    assert sorted(rows) == [*range(40), *range(100, 120)]
    assert rows != sorted(rows)


def test_a_second_epoch_has_the_same_rows_in_another_order(files):
    steps = make(files).steps(StreamPosition())
    first, second = ([number for step in islice(steps, 10) for number in seen(step)] for _ in range(2))
    assert sorted(first) == sorted(second) == [*range(40), *range(100, 120)]
    assert first != second


def test_without_shuffling_a_single_source_keeps_its_order(files):
    steps = make(files[:1], shuffle=False).steps(StreamPosition())
    assert sorted(seen(next(steps))) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("stop", range(1, 14))
def test_a_stream_goes_on_where_it_stopped(files, stop):
    whole = [seen(step) for step in islice(make(files).steps(StreamPosition()), 20)]
    stream = make(files)
    before = [seen(step) for step in islice(stream.steps(StreamPosition()), stop)]
    kept = json.loads(json.dumps(asdict(stream.position)))
    after = [seen(step) for step in islice(make(files).steps(StreamPosition(**kept)), 20 - stop)]
    assert before + after == whole


def test_ranks_share_each_global_batch(files):
    alone = [sorted(seen(step)) for step in islice(make(files).steps(StreamPosition()), 12)]
    for world_size in (2, 3):
        # what each rank would say is worked out first, as a gather of the real thing does it at once
        said: list[dict[int, list]] = []
        streams = []
        for rank in range(world_size):
            told: list = []
            said.append({0: told})
            streams.append(
                make(
                    files,
                    rank=rank,
                    world_size=world_size,
                    ranks=lambda value, told=told: told.append(value) or [value],
                )
            )
        parts = [[seen(step) for step in islice(stream.steps(StreamPosition()), 12)] for stream in streams]
        joined = [sorted(number for part in parts for number in part[index]) for index in range(12)]
        assert joined == alone


def test_weights_draw_one_source_more_often(files):
    steps = make(files, weights=[1.0, 9.0], buffer=20).steps(StreamPosition())
    first = [number for step in islice(steps, 3) for number in seen(step)]
    assert sum(number >= 100 for number in first) > 12


def test_rows_without_targets_are_left_out_and_too_many_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"{n}-{'x' if n % 4 == 0 else 'y'}"}) + "\n" for n in range(3000)))
    steps = make([path], max_empty=0.5, shuffle=False).steps(StreamPosition())
    assert sorted(seen(next(steps))) == [1, 2, 3, 5]
    with pytest.raises(UserError, match=r"data.max_empty = 1.0%"):
        list(islice(make([path], max_empty=0.01).steps(StreamPosition()), 400))


def test_an_empty_stream_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("")
    with pytest.raises(UserError, match="no rows|empty"):
        next(make([path]).steps(StreamPosition()))


def test_what_a_chat_template_leaves_out_is_said_once_and_is_no_part_of_a_sample(files, caplog, monkeypatch):
    facts = {"said": 10, "left_out": 4, "unseen_prompt": ""}

    def leaving_out(rows):
        return [replace(sample, facts=facts) for sample in prepare(rows)]

    steps = make(files)
    steps.prepare = leaving_out
    collated = []
    monkeypatch.setattr(steps, "collate", lambda samples: collated.extend(samples) or collate(samples))
    with caplog.at_level("WARNING", logger="ftscale"):
        list(islice(steps.steps(StreamPosition()), 4))
    [message] = [record.message for record in caplog.records]
    assert message.startswith("data.train: the chat template leaves out 24 of 60 characters")
    assert collated
    assert all(set(sample.inputs) == {"ids"} and not set(sample.stored()) & set(facts) for sample in collated)
