from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ftscale.base.errors import UserError
from ftscale.base.files import partial_path
from ftscale.config.schema import DataConfig, ModelConfig, SourceConfig
from ftscale.data import cache as cache_module
from ftscale.data import prepare as prepare_module
from ftscale.data.heard import say_once
from ftscale.data.prepare import prepare_sources, processor_key, split_rows
from ftscale.data.sample import Sample
from ftscale.modalities.text import Text

ROLES = (("text", "label"),)


def prepare(rows):
    """Words to their lengths; "empty" has no target, "long ..." is cut to three words."""
    samples = []
    for row in rows:
        words = row["text"].split()
        drop = "no_target" if words == ["empty"] else ""
        kept = [len(word) for word in words[:3]]
        counts, truncated = {"loss": len(kept)}, len(words) > 3
        samples.append(Sample({"input_ids": kept}, cost=len(kept), counts=counts, drop=drop, truncated=truncated))
    return samples


def prepare_and_count(rows):
    """Leaves a mark for each call, so that a test sees who prepared."""
    with open(os.environ["CALLS"], "a") as file:
        file.write("x")
    return prepare(rows)


def write(path: Path, texts: list[str]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([text, str(index % 3)] for index, text in enumerate(texts))
    return str(path)


def run(paths, *, cache: Path, function=prepare, name="train", key="k", keep=None, **data):
    sources = [SourceConfig(path=path) for path in paths]
    config = DataConfig(train=paths, cache_dir=str(cache), **data)
    return prepare_sources(sources, function, name=name, key=key, roles=ROLES, data=config, keep=keep)


def test_each_source_tells_what_became_of_its_rows(tmp_path):
    first = write(tmp_path / "a.csv", ["one two", "a b c d e", "empty", "three"])
    second = write(tmp_path / "b.csv", ["xx yy zz"])
    made = run([first, second], cache=tmp_path / "cache", max_empty=0.5)
    one, two = made.reports
    assert (one.read, one.kept, one.truncated, one.dropped) == (4, 3, 1, {"no_target": 1})
    assert (one.longest, one.mean_length, one.targets) == (3, 2.0, 6)
    assert (two.read, two.kept) == (1, 1)
    assert [(span.start, span.stop) for span in made.sources] == [(0, 3), (3, 4)]
    assert made.dataset["input_ids"][:] == [[3, 3], [1, 1, 1], [5], [2, 2, 2]]


def test_rows_are_prepared_once_and_again_when_content_or_settings_change(tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    monkeypatch.setenv("CALLS", str(calls))
    path = write(tmp_path / "a.csv", ["one", "two"])
    for _ in range(2):
        run([path], cache=tmp_path / "cache", function=prepare_and_count)
    assert calls.read_text() == "x"
    run([path], cache=tmp_path / "cache", function=prepare_and_count, key="other tokenizer")
    assert calls.read_text() == "xx"
    write(tmp_path / "a.csv", ["one", "three"])
    assert run([path], cache=tmp_path / "cache", function=prepare_and_count).dataset["input_ids"][:] == [[3], [5]]
    assert calls.read_text() == "xxx"


def _in_another_process(path: str, cache: Path) -> None:
    run([path], cache=cache, function=prepare_and_count)


def test_of_several_processes_one_prepares(tmp_path, monkeypatch):
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    path = write(tmp_path / "a.csv", ["one", "two"] * 50)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_in_another_process, args=(path, tmp_path / "cache")) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (tmp_path / "calls").read_text() == "x"


def test_what_a_killed_process_left_is_made_anew(tmp_path):
    path = write(tmp_path / "a.csv", ["one", "two"])
    run([path], cache=tmp_path / "cache")
    [folder] = [entry for entry in (tmp_path / "cache").iterdir() if entry.is_dir()]
    left = partial_path(folder)
    folder.rename(left)
    (left / "report.json").unlink()
    assert len(run([path], cache=tmp_path / "cache")) == 2
    assert not left.exists()


def test_nothing_is_written_through_links_in_a_cache(tmp_path):
    path = write(tmp_path / "a.csv", ["one", "two"])
    run([path], cache=tmp_path / "cache")
    [folder] = [entry for entry in (tmp_path / "cache").iterdir() if entry.is_dir()]
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "notes").write_text("mine")
    for name in (folder.name, f"{folder.name}.partial", f".{folder.name}.0.partial"):
        (tmp_path / "cache" / name).symlink_to(theirs)
    (tmp_path / "cache" / f"{folder.name}.lock").symlink_to(theirs / "notes")
    assert run([path], cache=tmp_path / "cache").dataset["input_ids"][:] == [[3], [3]]
    assert [(item.name, item.read_text()) for item in theirs.iterdir()] == [("notes", "mine")]
    assert not folder.is_symlink()


def prepared_folder(cache: Path) -> Path:
    [folder] = [entry for entry in cache.iterdir() if entry.is_dir()]
    return folder


def flip_each_byte(path: Path) -> Iterator[None]:
    """The file with one byte changed, one after another, in steps through all of it."""
    whole = path.read_bytes()
    for place in {*range(0, len(whole), 97), len(whole) - 1}:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        yield
    path.write_bytes(whole[: len(whole) // 2])
    yield
    path.write_bytes(b"")
    yield
    path.unlink()
    yield


@pytest.mark.parametrize("name", ["source-0.arrow", "report.json"])
def test_a_damaged_cache_is_prepared_anew(tmp_path, name, caplog):
    path, cache = write(tmp_path / "a.csv", ["one", "three"]), tmp_path / "cache"
    run([path], cache=cache)
    with caplog.at_level("WARNING", logger="ftscale"):
        for _ in flip_each_byte(prepared_folder(cache) / name):
            caplog.clear()
            assert run([path], cache=cache).dataset["input_ids"][:] == [[3], [5]]
            assert "is prepared anew" in caplog.text


def test_rows_of_another_cache_are_not_taken_for_these(tmp_path):
    path, cache, other = write(tmp_path / "a.csv", ["one", "three"]), tmp_path / "cache", tmp_path / "other"
    run([path], cache=cache)
    run([write(tmp_path / "b.csv", ["three", "one"])], cache=other)
    shutil.copy(prepared_folder(other) / "source-0.arrow", prepared_folder(cache) / "source-0.arrow")
    assert run([path], cache=cache).dataset["input_ids"][:] == [[3], [5]]


def test_a_link_in_the_place_of_a_cache_leads_nowhere(tmp_path):
    path, cache = write(tmp_path / "a.csv", ["one", "three"]), tmp_path / "cache"
    run([path], cache=cache)
    folder, victim = prepared_folder(cache), tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("x")
    for link in (folder, folder.with_suffix(".partial")):
        if link.exists():
            shutil.rmtree(link)
        link.symlink_to(victim)
        assert len(run([path], cache=cache)) == 2
        assert [item.name for item in victim.iterdir()] == ["precious"]


def test_what_another_user_prepared_is_refused(tmp_path, monkeypatch):
    path, cache = write(tmp_path / "a.csv", ["one", "three"]), tmp_path / "cache"
    run([path], cache=cache)
    assert prepared_folder(cache).stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(cache_module, "own_id", lambda folder: os.getuid() + 1)
    with pytest.raises(UserError, match="data.cache_dir.*another user.*a folder of your own"):
        run([path], cache=cache)


def test_equal_rows_have_one_content_hash_and_others_another(tmp_path):
    path = write(tmp_path / "a.csv", [f"word {'y' * (number % 9)}" for number in range(2500)])
    first = run([path], cache=tmp_path / "one")
    assert run([path], cache=tmp_path / "two").samples_hash == first.samples_hash
    assert run([path], cache=tmp_path / "one").samples_hash == first.samples_hash
    write(tmp_path / "a.csv", [f"word {'y' * (number % 9)}" for number in range(2499)] + ["other"])
    assert run([path], cache=tmp_path / "one").samples_hash != first.samples_hash


def test_too_many_rows_without_a_target_are_refused_unless_accepted(tmp_path):
    path = write(tmp_path / "a.csv", ["one"] * 98 + ["empty"] * 2)
    with pytest.raises(UserError, match=r"data.train\[0\]: 2 of 100 rows .* data.max_empty = 1.0%"):
        run([path], cache=tmp_path / "cache")
    assert len(run([path], cache=tmp_path / "cache", max_empty=0.02)) == 98


def test_a_data_set_of_which_nothing_is_left_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", ["empty"])
    with pytest.raises(UserError, match="no row is left"):
        run([path], cache=tmp_path / "cache", max_empty=1.0)


def test_workers_change_no_sample_and_are_started_once_and_not_for_few_rows(tmp_path, monkeypatch):
    started = []

    class Counted(prepare_module.ProcessPoolExecutor):
        def __init__(self, *arguments, **options):
            started.append(self)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(prepare_module, "ProcessPoolExecutor", Counted)
    few = write(tmp_path / "few.csv", ["one", "three"] * 10)
    run([few], cache=tmp_path / "few", prepare_workers=2)
    assert not started
    many = write(tmp_path / "many.csv", [f"word {'y' * (number % 9)}" for number in range(2500)])
    alone = run([few, many, many], cache=tmp_path / "one")
    together = run([few, many, many], cache=tmp_path / "two", prepare_workers=2)
    assert len(started) == 1
    assert together.dataset["input_ids"][:] == alone.dataset["input_ids"][:]
    assert together.samples_hash == alone.samples_hash


def test_a_held_out_part_is_stratified_and_the_same_for_a_seed(tmp_path):
    path = write(tmp_path / "a.csv", [f"word{number}" for number in range(90)])
    data = DataConfig(train=path, eval_ratio=0.1, stratify="label")
    [held] = split_rows(data.train, data=data, roles=ROLES, seed=3)
    assert sorted(number % 3 for number in held) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert split_rows(data.train, data=data, roles=ROLES, seed=3) == [held]
    assert split_rows(data.train, data=data, roles=ROLES, seed=4) != [held]
    kept = run([path], cache=tmp_path / "cache", keep=lambda source, row: row not in held)
    assert len(kept) == 81


def test_a_column_to_stratify_by_must_be_read(tmp_path):
    path = write(tmp_path / "a.csv", ["one", "two", "three"])
    data = DataConfig(train=path, eval_ratio=0.3, stratify="topic")
    with pytest.raises(
        UserError, match="data.stratify = 'topic' is not a column the task reads; name one of label, text"
    ):
        split_rows(data.train, data=data, roles=ROLES, seed=0)


def test_a_tokenizer_has_the_same_digest_before_and_after_its_use(shared):
    tokenizer = Text().load_processor(ModelConfig(name=str(shared / "weights/stories260K")))
    before = processor_key(tokenizer)
    tokenizer(["a text", "another one that is longer"], truncation=True, max_length=4, padding=True)
    assert processor_key(tokenizer) == before
    tokenizer.add_tokens(["<new>"])
    assert processor_key(tokenizer) != before


def test_a_processor_of_speech_has_the_digest_of_its_letters_too(tmp_path):
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

    def key(letters: str) -> str:
        path = tmp_path / f"{letters}.json"
        path.write_text(json.dumps({token: number for number, token in enumerate(["<pad>", "<unk>", "|", *letters])}))
        tokenizer = Wav2Vec2CTCTokenizer(str(path), bos_token=None, eos_token=None)
        return processor_key(Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer))

    assert key("abc") == key("abc") != key("abx")


def classified(rows):
    """Words to their lengths, a class of a row's length, and two terms of a loss."""
    samples = []
    for row in rows:
        words = list(map(len, row["text"].split()))
        facts = {"hashes": [hash(row["text"]), hash((row["text"], row["label"]))]}
        counts = {"words": len(words), "letters": sum(words)}
        samples.append(Sample({"input_ids": words}, len(words) % 3, cost=len(words) + 1, counts=counts, facts=facts))
    return samples


def test_numbers_of_samples_are_mapped_and_those_of_the_samples(tmp_path):
    texts = ["one two", "three", "one two three four", "three", "a b"]
    first, second = write(tmp_path / "a.csv", texts), write(tmp_path / "b.csv", ["five six"])
    run([first, second], cache=tmp_path / "cache", function=classified)
    made = run([first, second], cache=tmp_path / "cache", function=classified)
    words = [text.split() for text in [*texts, "five six"]]
    assert made.costs.tolist() == [len(item) + 1 for item in words]
    assert sorted(made.counts) == ["letters", "words"]
    assert made.counts["letters"].tolist() == [sum(map(len, item)) for item in words]
    assert made.counts["words"].tolist() == list(map(len, words))
    assert made.inputs.tolist() == sorted(hash(text) for text in [*texts, "five six"])
    for values in (made.costs, made.inputs, *made.counts.values()):
        assert values.dtype == np.int64
        assert isinstance(values.base, np.memmap)
    assert made.contradicting == 2  # "three" has two labels
    assert list(made.label_counts().items()) == [(2, 3), (1, 3)]
    assert made.sample(2).inputs == {"input_ids": [3, 3, 5, 4]}
    assert made.where(5) == ""


def test_each_of_several_labels_is_counted_as_they_come(tmp_path):
    def several(rows):
        lists = {"x": [2, 0], "y": [], "z": [0]}
        return [Sample({"input_ids": [1]}, lists[row["text"]], counts={"loss": 1}) for row in rows]

    made = run([write(tmp_path / "a.csv", list("xyzx"))], cache=tmp_path / "cache", function=several)
    assert list(made.label_counts().items()) == [(2, 2), (0, 3)]
    other = run([write(tmp_path / "b.csv", ["one"])], cache=tmp_path / "cache")
    assert other.label_counts() == {}


def test_samples_are_the_same_in_blocks_of_any_size(tmp_path, monkeypatch):
    path = write(tmp_path / "a.csv", [f"word {'y' * (number % 9)}" for number in range(3500)])
    whole = run([path], cache=tmp_path / "one")
    monkeypatch.setattr("ftscale.data.store.BLOCK_BYTES", 1)
    pieces = run([path], cache=tmp_path / "two")
    assert (len(whole.dataset.data.column(0).chunks), len(pieces.dataset.data.column(0).chunks)) == (1, 4)
    assert pieces.dataset[:] == whole.dataset[:]
    assert pieces.samples_hash == whole.samples_hash


def test_what_reading_says_is_said_by_each_start(tmp_path, caplog):
    (tmp_path / "rows").mkdir()
    write(tmp_path / "rows/a.csv", ["one", "two"])
    (tmp_path / "rows/b.csv").write_text("")
    for _ in range(2):
        say_once.cache_clear()
        caplog.clear()
        run([str(tmp_path / "rows")], cache=tmp_path / "cache")
        said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert said == [f"{tmp_path}/rows/b.csv is empty (0 bytes) and passed over; see whether it was written"]
