"""Embeddings against sentence-transformers: its losses, its scores, and the saved folder as it loads it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer, losses, util
from sentence_transformers.evaluation import InformationRetrievalEvaluator
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, BertConfig, BertModel

from ftscale import train
from ftscale.base.errors import UserError
from ftscale.config import parse_config
from ftscale.config.tasks import SETTINGS
from ftscale.config.tasks.embedding import EmbeddingSettings
from ftscale.config.tasks.reranking import RerankingSettings
from ftscale.data.census import content_of, contradicting
from ftscale.data.loader import Step
from ftscale.data.sample import Sample
from ftscale.methods.base import Context
from ftscale.methods.extra import copy_extra
from ftscale.modalities.collate import Layout
from ftscale.models.attention import use_flat
from ftscale.models.dropout import use_row_dropout
from ftscale.models.masks import Masks
from ftscale.run.evaluate import evaluate_run
from ftscale.run.export import export_run
from ftscale.run.predict import predict_file
from ftscale.tasks import build_task, embedding_losses
from ftscale.tasks.base import Task
from ftscale.tasks.batch import Batch
from ftscale.tasks.embedding_losses import Compared
from ftscale.tasks.embedding_model import Form, form_of, form_problems
from ftscale.tasks.embedding_scores import Record, found_of, scores_of

DIM = 12
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


# ---------------------------------------------------------------- losses


def some(numbers: list[int], labels: Tensor | None = None) -> Compared:
    """Random vectors of different texts."""
    generator = torch.Generator().manual_seed(len(numbers))
    vectors = torch.randn(sum(numbers), DIM, generator=generator).requires_grad_()
    labels = torch.ones(len(numbers)) if labels is None else labels
    ids, rows = torch.arange(sum(numbers)), torch.arange(len(numbers))
    return Compared(vectors, numbers, ids, labels, torch.ones(len(numbers)), rows)


class Given(nn.Module):
    """In place of their model: gives vectors that are there already."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(features)

    def get_embedding_dimension(self) -> int:
        return DIM

    get_sentence_embedding_dimension = get_embedding_dimension


def columns_of(given: Compared) -> list[dict[str, Tensor]]:
    """Their features: the first texts of all samples, the second ones, ..."""
    number = given.numbers[0]
    return [{"sentence_embedding": given.vectors[place::number]} for place in range(number)]


def scores() -> Tensor:
    return torch.tensor([0.1, 0.9, 0.5, 0.5, 0.0, 1.0])


LOSSES: dict[str, tuple[Any, Any, Compared]] = {
    "infonce": (
        partial(embedding_losses.infonce, temperature=0.05, symmetric=False),
        losses.MultipleNegativesRankingLoss(Given(), scale=20.0),
        some([2] * 6),
    ),
    "infonce, hard negatives": (
        partial(embedding_losses.infonce, temperature=0.1, symmetric=False),
        losses.MultipleNegativesRankingLoss(Given(), scale=10.0),
        some([4] * 5),
    ),
    "infonce, symmetric": (
        partial(embedding_losses.infonce, temperature=0.05, symmetric=True),
        losses.MultipleNegativesSymmetricRankingLoss(Given(), scale=20.0),
        some([2] * 6),
    ),
    "triplet": (
        partial(embedding_losses.triplet, margin=0.5),
        losses.TripletLoss(Given(), losses.TripletDistanceMetric.COSINE, triplet_margin=0.5),
        some([3] * 6),
    ),
    "margin_mse": (embedding_losses.margin_mse, losses.MarginMSELoss(Given()), some([3] * 6, scores())),
    "contrastive": (
        partial(embedding_losses.contrastive, margin=0.5),
        losses.ContrastiveLoss(Given(), margin=0.5),
        some([2] * 6, torch.tensor([0.0, 1, 1, 0, 1, 0])),
    ),
    "cosine_mse": (embedding_losses.cosine_mse, losses.CosineSimilarityLoss(Given()), some([2] * 6, scores())),
    "cosent": (
        partial(embedding_losses.cosent, temperature=0.05),
        losses.CoSENTLoss(Given(), scale=20.0),
        some([2] * 6, scores()),
    ),
    "batch_hard_triplet": (
        partial(embedding_losses.batch_hard_triplet, margin=0.5),
        losses.BatchHardTripletLoss(Given(), losses.BatchHardTripletLossDistanceFunction.cosine_distance, margin=0.5),
        some([1] * 6, torch.tensor([0, 1, 0, 2, 1, 2])),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradient_are_those_of_sentence_transformers(name: str):
    ours, theirs, given = LOSSES[name]
    expected = theirs(columns_of(given), given.labels)
    found = ours(given).sum() / len(given.numbers)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    [gradient], [wanted] = torch.autograd.grad(found, [given.vectors]), torch.autograd.grad(expected, [given.vectors])
    assert wanted.abs().max() > 0
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sizes", [(12, 8, 4), (12,)])
def test_vectors_cut_to_several_sizes_add_up_as_in_matryoshka_loss(sizes: tuple[int, ...]):
    given, model = some([2] * 6), Given()
    theirs = losses.MatryoshkaLoss(model, losses.MultipleNegativesRankingLoss(model), list(sizes))
    ours = embedding_losses.of_sizes(partial(embedding_losses.infonce, temperature=0.05, symmetric=False), sizes)
    torch.testing.assert_close(ours(given).mean(), theirs(columns_of(given), given.labels), rtol=1e-5, atol=1e-6)


def test_a_text_that_is_right_for_another_row_is_no_negative():
    """Worked out by hand over what is left: rows 0 and 1 have one positive, rows 2 and 3 one anchor."""
    given = some([2] * 4)
    ids = torch.tensor([0, 1, 2, 1, 3, 4, 3, 5])
    vectors = given.vectors.detach().clone()
    vectors[3], vectors[6] = vectors[1], vectors[4]
    given = replace(given, ids=ids, vectors=vectors)
    unit = functional.normalize(vectors, dim=-1)
    anchors, rights = unit[0::2], unit[1::2]
    negatives = {0: [2, 3], 1: [2, 3], 2: [0], 3: [0]}
    expected = [
        torch.stack([anchors[row] @ rights[other] for other in (row, *others)]).div(0.05).log_softmax(dim=0)[0].neg()
        for row, others in negatives.items()
    ]
    found = embedding_losses.infonce(given, temperature=0.05, symmetric=False)
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("numbers", [[3, 1], [1, 3], [3, 2, 1]])
def test_samples_without_a_negative_have_no_loss_of_triplets(numbers: list[int]):
    given = some(numbers)
    [place] = [place for place, number in enumerate(numbers) if number == 3]
    start = sum(numbers[:place])
    anchor, near, far = functional.normalize(given.vectors[start : start + 3], dim=-1)
    expected = torch.zeros(len(numbers))
    expected[place] = (anchor @ far - anchor @ near + 0.5).relu()
    torch.testing.assert_close(embedding_losses.triplet(given, margin=0.5), expected)
    margins = given.vectors[start] @ (given.vectors[start + 1] - given.vectors[start + 2])
    assert embedding_losses.margin_mse(given).detach()[place].item() == pytest.approx(
        (margins - 1).square().item(), rel=1e-4
    )


def test_a_text_that_is_judged_wrong_is_no_positive(shared: Path):
    """It is one that others are compared with: also for the text that it is wrong for."""
    rows = [{"anchor": "who flies", "positive": "bees do", "score": score} for score in ("2", 0, -1.0, None)]
    task = task_of(shared)
    samples = task.prepare(rows)
    assert [len(sample.inputs["lengths"]) for sample in samples] == [2, 1, 1, 2]
    assert [sample.counts["loss"] for sample in samples] == [1, 0, 0, 1]
    [sample] = task_of(shared, loss="margin_mse").prepare([{**rows[1], "negative": "a stone"}])
    assert len(sample.inputs["lengths"]) == 3


def test_which_of_equal_texts_counts_does_not_depend_on_the_order_of_samples():
    """With dropout they have other vectors: rows 0 and 2 have one positive; row 1 is compared with that of row 0."""
    given = replace(some([2] * 4), ids=torch.tensor([0, 1, 2, 3, 4, 1, 5, 6]))
    order = [2, 3, 1, 0]
    places = [place for sample in order for place in (2 * sample, 2 * sample + 1)]
    other = replace(given, vectors=given.vectors[places], ids=given.ids[places], keys=given.keys[order])
    one, another = (embedding_losses.infonce(it, temperature=0.05, symmetric=True) for it in (given, other))
    torch.testing.assert_close(another, one[order])


def test_a_text_without_an_anchor_is_a_negative_and_no_target():
    alone = some([2, 1, 2])
    found = embedding_losses.infonce(alone, temperature=0.05, symmetric=False)
    unit = functional.normalize(alone.vectors, dim=-1)
    logits = unit[[0, 3]] @ unit[[1, 4, 2]].T / 0.05
    expected = functional.cross_entropy(logits, torch.tensor([0, 1]), reduction="none")
    torch.testing.assert_close(found, torch.stack([expected[0], torch.zeros(()), expected[1]]))


# ---------------------------------------------------------------- the global batch


def task_of(shared: Path, **settings: Any) -> Task:
    processor = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/bert-base-uncased")
    return build_task(SETTINGS["embedding"](**{"name": "embedding", "loss": "infonce", **settings}), processor)


ROWS = [
    {"anchor": f"who built the {thing}", "positive": f"the {thing} was built by {who} long ago"}
    for thing, who in (("bridge", "a mason"), ("boat", "two brothers"), ("church", "monks"), ("clock", "a smith"))
]
ROWS += [{"anchor": "who sings", "positive": "birds do", "negative": ["a stone", "the sea at night"]}]


def numbered(samples: list[Sample]) -> list[Sample]:
    return [replace(sample, number=number) for number, sample in enumerate(samples)]


def bert(**sizes: Any) -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(vocab_size=30522, **SIZES, **sizes)).eval()


class Alone(nn.Module):
    """A model as the loop runs it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *, run: Any, batch: Any) -> Any:
        return run(self.model)


def stepped(task: Task, model: nn.Module, parts: list[list[Sample]]) -> list[Any]:
    """The micro-batches of one process behind the first pass."""
    batches = [(task.collate(part, layout="padded", train=True), True) for part in parts]
    process = SimpleNamespace(device=torch.device("cpu"), rank=0, world_size=1, gather_rows=lambda rows: [rows])
    step = task.before_step(Step(batches, {"loss": 1}, tokens=0), Context(Alone(model), process, 1))
    return [batch for batch, _ in step.micro_batches]


@pytest.mark.parametrize("loss", ["infonce", "cosent", "batch_hard_triplet"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_however_a_step_is_cut_its_gradient_is_that_of_one_batch(shared: Path, loss: str, size: int):
    task, model = task_of(shared, loss=loss), bert()
    rows = {
        "infonce": ROWS,
        "cosent": [
            {"text": row["anchor"], "text_pair": row["positive"], "score": 1 / at} for at, row in enumerate(ROWS, 1)
        ],
        "batch_hard_triplet": [{"text": row["positive"], "label": at % 2} for at, row in enumerate(ROWS)],
    }[loss]
    samples = numbered(task.prepare(rows))
    weights = list(model.encoder.parameters())
    whole = task.loss(model, task.collate(samples, layout="padded", train=True))["loss"]
    expected = torch.autograd.grad(whole, weights)
    parts = stepped(task, model, [samples[at : at + size] for at in range(0, len(samples), size)])
    found = sum(task.loss(model, part)["loss"] for part in parts)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)
    for gradient, wanted in zip(torch.autograd.grad(found, weights), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-6)
    assert sum(task.count(part)["loss"] for part in parts) == len(samples)


@pytest.mark.parametrize("layout", ["padded", "flat"])
def test_a_text_of_several_rows_is_read_once_and_its_gradient_is_theirs_together(shared: Path, layout: Layout):
    """Beside the same rows as if each stood there once more, of which none is read for another."""
    task, model = task_of(shared), bert()
    if layout == "flat":
        use_flat(model)
    shares = [{"anchor": f"who {verb}s here", "positive": "they all do, in turn"} for verb in ("sing", "dance", "cook")]
    samples = numbered(task.prepare([*shares, *ROWS]))
    apart = [replace(sample, repeat=place) for place, sample in enumerate(samples)]
    once, each = (task.collate(part, layout=layout, train=True) for part in (samples, apart))
    tokens = [len(sample.inputs["input_ids"]) for sample in samples]
    assert sum(tokens) == sum(stop - start for _, (start, stop) in spans(each))
    assert len(spans(once)) == len(spans(each)) - 2
    weights = [weight for name, weight in model.named_parameters() if not name.startswith("pooler")]
    values = [task.loss(model, batch)["loss"] for batch in (once, each)]
    torch.testing.assert_close(*values)
    for ours, theirs in zip(*(torch.autograd.grad(value, weights) for value in values), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def spans(batch: Batch) -> list[tuple[int, tuple[int, int]]]:
    return [(row, (span.start, span.stop)) for row, span in batch.spans]


def test_a_text_is_dropped_by_itself_an_anchor_otherwise_than_what_belongs_to_it(shared: Path):
    """So its vector is the same in any micro-batch; a text with itself as its positive (SimCSE) has two vectors."""
    task, model = task_of(shared), bert(hidden_dropout_prob=0.2).train()
    masks = Masks(seed=0)
    use_row_dropout(model, masks)
    rows = [{"anchor": "who sings", "positive": "they all do"}, {"anchor": "they all do", "positive": "they all do"}]
    samples = numbered(task.prepare([*rows, *ROWS]))

    def vectors(part: list[Sample]) -> torch.Tensor:
        batch = task.collate(part, layout="padded", train=True)
        drawn, repeats = batch.sequence_rows()
        masks.enter(drawn, repeats=repeats, bounds=None)
        return task._vectors(model, batch).detach()

    together, alone = vectors(samples), vectors(samples[1:2])
    torch.testing.assert_close(together[1], together[3])
    torch.testing.assert_close(together[2:4], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[2], together[3], atol=1e-2)
    again = vectors([replace(samples[1], repeat=1)])
    assert not torch.allclose(again[1], alone[1], atol=1e-2)


# ---------------------------------------------------------------- scores


def test_scores_of_retrieval_are_those_of_sentence_transformers(tmp_path: Path):
    rng = np.random.default_rng(0)
    queries, documents = rng.normal(size=(30, DIM)), rng.normal(size=(200, DIM))
    right = {number: set(rng.choice(200, size=1 + number % 3, replace=False).tolist()) for number in range(30)}
    theirs = InformationRetrievalEvaluator(
        {str(number): f"q{number}" for number in range(30)},
        {str(number): f"d{number}" for number in range(200)},
        {str(number): {str(place) for place in places} for number, places in right.items()},
        accuracy_at_k=[1],
        precision_recall_at_k=[1, 10],
        score_functions={"cosine": util.cos_sim},
        show_progress_bar=False,
    )
    vectors = {
        **{f"q{at}": row for at, row in enumerate(queries)},
        **{f"d{at}": row for at, row in enumerate(documents)},
    }
    encode = lambda texts, **_: torch.tensor(np.stack([vectors[text] for text in texts]), dtype=torch.float32)  # noqa: E731
    model = SimpleNamespace(
        encode_query=encode, encode_document=encode, encode=encode, similarity_fn_name="cosine", similarity=util.cos_sim
    )
    expected = theirs.compute_metrices(model)["cosine"]
    records = [
        Record(np.array([1000 + number, place]), np.stack([queries[number], documents[place]]).astype(np.float32), 1.0)
        for number, places in right.items()
        for place in sorted(places)
    ]
    others = set(range(200)).difference(*right.values())
    records += [Record(np.array([place]), documents[[place]].astype(np.float32), 1.0) for place in sorted(others)]
    loss = partial(embedding_losses.infonce, temperature=0.05, symmetric=False)
    found = scores_of(found_of(records, kind="documents", loss=loss))
    assert found["mrr@10"] == pytest.approx(expected["mrr@k"][10])
    assert found["ndcg@10"] == pytest.approx(expected["ndcg@k"][10])
    assert found["map@100"] == pytest.approx(expected["map@k"][100])
    assert found["recall@1"] == pytest.approx(expected["recall@k"][1])
    assert found["recall@10"] == pytest.approx(expected["recall@k"][10])
    assert 0 < found["mrr@10"] < 1


def test_degrees_of_relevance_count_in_ndcg():
    """By hand: what is worth 1 is found first, then what is worth 3."""
    unit = np.eye(4, dtype=np.float32)
    query = np.array([0.9, 0.4, 0.1, 0], dtype=np.float32)
    records = [
        Record(np.array([9, 0]), np.stack([query, unit[0]]), 1.0),
        Record(np.array([9, 1]), np.stack([query, unit[1]]), 3.0),
        Record(np.array([9, 2]), np.stack([query, unit[2]]), 0.0),
    ]
    loss = partial(embedding_losses.infonce, temperature=0.05, symmetric=False)
    [found] = found_of(records, kind="documents", loss=loss)
    assert found.ranks["ndcg@10"] == pytest.approx((1 + 3 / np.log2(3)) / (3 + 1 / np.log2(3)))
    assert (found.ranks["recall@1"], found.ranks["map@100"]) == (0.5, 1.0)


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module", params=["mean", "last_token"])
def run(shared: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A finished run on pairs, with prompts: an encoder in full, and a decoder with an adapter that is merged."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({**row, "negative": row.get("negative", [])}) + "\n" for row in ROWS)
    )
    adapter: dict[str, Any] = {}
    if request.param == "mean":
        model = folder / "base"
        bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).save_pretrained(model)
        AutoTokenizer.from_pretrained(shared / "weights/tokenizers/bert-base-uncased").save_pretrained(model)
    else:
        model = shared / "weights/stories260K"
        adapter = {"adapter": {"method": "lora", "r": 2, "target_modules": ["q_proj"]}}
    config = {
        "task": {"name": "embedding", "pooling": request.param, "query_prompt": "query: ", "max_length": 24},
        "run_folder": str(folder / "run"),
        "model": str(model),
        "data": {
            "train": str(folder / "rows.jsonl"),
            "eval": str(folder / "rows.jsonl"),
            "cache_dir": str(folder / "cache"),
        },
        "batch": {"global_size": 5, "micro_size": 2},
        "train": {"max_steps": 3},
        "optimizer": {"lr": 1e-3},
        **adapter,
    }
    train(parse_config(config, source="the test"))
    return folder


def test_sentence_transformers_loads_the_saved_folder_and_gives_the_same_vectors(run: Path):
    saved = run / "run/model"
    if (saved / "adapter_config.json").exists():
        export_run(run / "run", run / "exported", merge=True)
        saved = run / "exported"
    model = SentenceTransformer(str(saved), device="cpu")
    assert (model.max_seq_length, model.prompts["query"]) == (24, "query: ")
    queries = [row["anchor"] for row in ROWS] + ["a " * 40]
    (run / "queries.jsonl").write_text("".join(json.dumps({"anchor": text}) + "\n" for text in queries))
    (run / "texts.txt").write_text("\n".join(row["positive"] for row in ROWS))
    for file, theirs in (
        ("queries.jsonl", model.encode_query(queries)),
        ("texts.txt", model.encode_document([row["positive"] for row in ROWS])),
    ):
        predict_file(run / "run", str(run / file), out=run / f"{file}.out.jsonl")
        lines = (run / f"{file}.out.jsonl").read_text().splitlines()
        ours = np.array([json.loads(line)["prediction"] for line in lines], dtype=np.float32)
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


def test_a_run_tells_its_loss_and_how_well_texts_are_found(run: Path):
    assert "loss: infonce" in (run / "run/config.yaml").read_text()
    lines = [json.loads(line) for line in (run / "run/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert len(steps) == 3
    assert steps[-1]["loss"] < steps[0]["loss"]
    scores = evaluate_run(run / "run", data=str(run / "rows.jsonl"))
    assert set(scores) == {"loss", "recall@1", "recall@10", "mrr@10", "ndcg@10", "map@100"}
    assert scores["recall@10"] == 1


def test_evaluate_scores_a_beir_folder_as_sentence_transformers_does(run: Path):
    """A query with two right documents, one judged wrong, and documents that nobody judged."""
    corpus = {f"d{number}": text for number, text in enumerate(dict.fromkeys(row["positive"] for row in ROWS))}
    corpus |= {
        f"other{number}": f"{number} birds in the {place}" for number, place in enumerate(["tree", "sky", "sea"])
    }
    queries = {f"q{number}": text for number, text in enumerate(dict.fromkeys(row["anchor"] for row in ROWS))}
    names = {text: name for name, text in corpus.items()} | {text: name for name, text in queries.items()}
    judged = {(names[row["anchor"]], names[row["positive"]]): 1 for row in ROWS}
    judged |= {("q0", "d1"): 1, ("q0", "d2"): 0}
    folder = run / "beir"
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", corpus), ("queries", queries)):
        lines = (json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items())
        (folder / f"{name}.jsonl").write_text("".join(lines))
    for split in ("dev", "test"):
        lines = ("\t".join(map(str, (*pair, score))) + "\n" for pair, score in judged.items())
        (folder / f"qrels/{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    scores = evaluate_run(run / "run", data=str(folder), overrides=["data.eval.0.split=test"])
    saved = run / "exported" if (run / "exported").exists() else run / "run/model"
    right = {
        query: {document for (of, document), score in judged.items() if of == query and score} for query in queries
    }
    theirs = InformationRetrievalEvaluator(
        queries, corpus, right, precision_recall_at_k=[1, 10], show_progress_bar=False
    )
    expected = theirs(SentenceTransformer(str(saved), device="cpu"))
    for ours, name in (("mrr@10", "mrr@10"), ("recall@1", "recall@1"), ("ndcg@10", "ndcg@10"), ("map@100", "map@100")):
        assert scores[ours] == pytest.approx(expected[f"cosine_{name}"], abs=1e-6), name
    assert scores["recall@1"] < 1


def test_one_anchor_with_several_positives_contradicts_nothing():
    """Nor do documents without an anchor; one pair with two scores does."""
    inputs = EmbeddingSettings().input_columns
    pairs = [
        {"anchor": "a", "positive": "b"},
        {"anchor": "a", "positive": "c"},
        {"anchor": None, "positive": "d"},
        {"anchor": None, "positive": "e"},
        {"text": "a", "text_pair": "b", "score": 1},
        {"text": "a", "text_pair": "c", "score": 0},
    ]
    assert contradicting(np.array([content_of(row, inputs=inputs) for row in pairs])) == 0
    scored = [{"text": "a", "text_pair": "b", "score": score} for score in (0, 1)]
    assert contradicting(np.array([content_of(row, inputs=inputs) for row in scored])) == 2
    negatives = [{"anchor": "a", "positive": "b", "negative": [text]} for text in "cd"]
    inputs = RerankingSettings().input_columns
    assert contradicting(np.array([content_of(row, inputs=inputs) for row in negatives])) == 0


@pytest.mark.parametrize(
    ("settings", "row", "problem"),
    [
        (
            {"loss": "triplet"},
            {"anchor": "a", "positive": "b"},
            "task.loss = triplet reads anchor, positive, negative, and",
        ),
        ({"loss": "cosent"}, {"text": "a", "text_pair": "b", "score": "high"}, "score = 'high' must be a number"),
        ({}, {"anchor": "a", "positive": None}, "positive = None must be a text"),
        ({"loss": "batch_hard_triplet"}, {"text": "a", "label": ["x"]}, "is a list"),
    ],
)
def test_a_row_that_breaks_a_rule_is_named(shared: Path, settings: dict[str, Any], row: dict[str, Any], problem: str):
    with pytest.raises(UserError, match=problem):
        task_of(shared, **settings).prepare([row])


# ---------------------------------------------------------------- what lies beside a model


def beside(folder: Path, kinds: list[str], pooling: dict[str, bool], prompts: dict[str, str]) -> str:
    """The files of sentence-transformers of a model."""
    modules = [
        {"idx": at, "name": str(at), "path": f"{at}_{kind}" if at else "", "type": f"x.y.{kind}"}
        for at, kind in enumerate(kinds)
    ]
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 8, **pooling}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    return str(folder)


def test_what_is_not_set_is_as_the_models_own_files_say(tmp_path: Path):
    prompts = {"query": "query: ", "passage": "passage: "}
    place = beside(
        tmp_path,
        ["Transformer", "Pooling"],
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        prompts,
    )
    settings = SETTINGS["embedding"]
    assert form_of(settings(), place) == Form("cls", False, "query: ", "passage: ")
    assert form_of(settings(pooling="mean", normalize=True, document_prompt=""), place) == Form(
        "mean", True, "query: ", ""
    )
    assert form_of(settings(), str(tmp_path / "1_Pooling")) == Form("mean", True, "", "")
    assert form_problems(settings(), place) == []


@pytest.mark.parametrize("content", ["[1, null]", "{}", '"a"', "[{}]", "not JSON"])
def test_files_beside_a_model_that_say_nothing_are_passed_over(tmp_path: Path, content: str):
    for name in ("modules.json", "config_sentence_transformers.json", "1_Pooling/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    settings = SETTINGS["embedding"](pooling="mean", normalize=True)
    assert form_of(settings, str(tmp_path)) == Form()


def test_what_is_taken_along_follows_no_link(shared: Path, tmp_path: Path):
    source, target = tmp_path / "model", tmp_path / "exported"
    (source / "1_Pooling").mkdir(parents=True)
    target.mkdir()
    (tmp_path / "secret").write_text("mine")
    (source / "modules.json").write_text("[]")
    (source / "1_Pooling/config.json").symlink_to(tmp_path / "secret")
    (source / "2_Normalize").symlink_to(tmp_path)
    copy_extra(source, target, task_of(shared))
    assert [path.name for path in target.rglob("*") if path.is_file()] == ["modules.json"]


def test_what_cannot_be_had_of_a_model_is_told(tmp_path: Path):
    place = beside(tmp_path, ["Transformer", "Pooling", "Dense"], {"pooling_mode_max_tokens": True}, {})
    settings = SETTINGS["embedding"]
    dense, pooling = form_problems(settings(), place)
    assert "has a module Dense behind its vectors" in dense
    assert pooling.endswith("has pooling_mode_max_tokens; set task.pooling to one of cls, mean, last_token.")
    assert form_problems(settings(pooling="mean"), place) == [dense]
