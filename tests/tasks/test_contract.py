"""The contract battery over every task, with real rows, real processors and tiny random models."""

from __future__ import annotations

import csv
import gzip
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from ftscale.config.schema import Config
from ftscale.config.tasks import SETTINGS
from ftscale.data.sample import Sample
from ftscale.tasks import build_task
from ftscale.tasks.base import Row, Task, weighted
from ftscale.tasks.batch import Batch, Counts, Terms
from ftscale.tasks.text_classification import TextClassification
from tests import contract
from tests.contract import CHECKS, Case

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
PAIR_COLUMNS = ("sentence_A", "sentence_B")


def text_single_label(shared: Path) -> Case:
    with open(shared / "data/text_classification/banking77/train.csv", newline="") as file:
        rows = [{"text": row["text"], "label": row["category"]} for row in islice(csv.DictReader(file), 0, 1500, 250)]
    return text_case(shared, rows, {})


def text_pair_regression(shared: Path) -> Case:
    with open(shared / "data/text_pair/sick/SICK_train.txt", newline="") as file:
        rows = [
            {"text": row["sentence_A"], "text_pair": row["sentence_B"], "label": row["relatedness_score"]}
            for row in islice(csv.DictReader(file, delimiter="\t"), 6)
        ]
    return text_case(shared, rows, {"problem": "regression"})


def text_multi_label(shared: Path) -> Case:
    with open(shared / "data/text_classification/banking77/train.csv", newline="") as file:
        rows = [
            {"text": row["text"], "label": row["category"].split("_")}
            for row in islice(csv.DictReader(file), 0, 1500, 250)
        ]
    rows[1]["label"] = []
    return text_case(shared, rows, {"problem": "multi_label"})


def text_case(shared: Path, rows: list[dict], settings: dict[str, Any]) -> Case:
    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/bert-base-uncased")
    task = fitted({"name": "text_classification", **settings}, rows, tokenizer)
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=30522, **SIZES, **task.model_settings())).eval()
    return Case(task, rows, model, without(rows, "label"), flat=True)


def token_classification(shared: Path) -> Case:
    text = (shared / "data/ner/ncbi_disease/train.tsv").read_text()
    rows = []
    for sentence in text.split("\n\n")[:6]:
        words, tags = zip(*(line.split("\t") for line in sentence.splitlines()), strict=True)
        rows.append({"words": list(words), "tags": list(tags)})
    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/bert-base-uncased")
    task = fitted({"name": "token_classification", "max_length": 40}, rows, tokenizer)
    torch.manual_seed(0)
    model = BertForTokenClassification(BertConfig(vocab_size=30522, **SIZES, **task.model_settings())).eval()
    return Case(task, rows, model, without(rows, "tags"), flat=True)


def causal_lm(shared: Path) -> Case:
    with open(shared / "data/math/gsm8k/train.jsonl") as file:
        rows = [{"prompt": row["question"], "completion": row["answer"]} for row in map(json.loads, islice(file, 5))]
    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/qwen2")
    task = fitted({"name": "causal_lm", "max_length": 128, "generate": {"max_new_tokens": 4}}, rows, tokenizer)
    return Case(task, rows, tiny_llama(tokenizer), without(rows, "completion"), flat=True)


def seq2seq(shared: Path) -> Case:
    folder = shared / "data/translation/multi30k_de-en"
    with gzip.open(folder / "val.de.gz", "rt") as german, gzip.open(folder / "val.en.gz", "rt") as english:
        rows = [
            {"source": source.strip(), "target": target.strip()}
            for source, target in islice(zip(german, english, strict=True), 5)
        ]
    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/t5")
    task = fitted({"name": "seq2seq", "max_target_length": 12, "generate": {"max_new_tokens": 4}}, rows, tokenizer)
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(vocab_size=32128, decoder_start_token_id=0, **sizes)).eval()
    return Case(task, rows, model, without(rows, "target"))


def question_answering(shared: Path) -> Case:
    """Paragraphs in several windows; a question of each has no answer."""
    document = json.loads((shared / "data/qa/squad_v2_dev/dev-v2.0.json").read_text())
    rows = [
        {"question": asked["question"], "context": paragraph["context"], "answers": asked["answers"]}
        for paragraph in document["data"][0]["paragraphs"][:2]
        for asked in (paragraph["qas"][0], paragraph["qas"][-1])
    ]
    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/bert-base-uncased")
    sizes = {"max_length": 120, "max_question": 40, "stride": 30}
    task = fitted({"name": "question_answering", **sizes}, rows, tokenizer)
    assert task.settings.no_answer
    torch.manual_seed(0)
    model = BertForQuestionAnswering(BertConfig(vocab_size=30522, **SIZES, **task.model_settings())).eval()
    return Case(task, rows, model, without(rows, "answers"), flat=True)


def masked_lm(shared: Path, **settings: Any) -> Case:
    with open(shared / "data/text_classification/banking77/train.csv", newline="") as file:
        rows = [{"text": row["text"]} for row in islice(csv.DictReader(file), 0, 1500, 250)]
    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/bert-base-uncased")
    task = fitted({"name": "masked_lm", **settings}, rows, tokenizer)
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=30522, **SIZES)).eval()
    unlabelled = [rows[0], {"text": "i lost my [MASK] and [MASK] card."}, rows[1]]
    return Case(task, rows, model, unlabelled, flat=True)


def choice_rows(shared: Path) -> list[dict[str, Any]]:
    """Two choices or three; some are about a context."""
    items = ElementTree.parse(shared / "data/multiple_choice/balanced_copa/balacopa-dev-all.xml").getroot()[:6]
    return [
        {
            "context": item.findtext("p") if place % 2 else None,
            "question": f"What was the {item.get('asks-for')} of this?" if place % 2 else item.findtext("p"),
            "choices": [item.findtext("a1"), item.findtext("a2"), "The cat slept."][: 2 + place % 3 // 2],
            "label": int(item.get("most-plausible-alternative")),
        }
        for place, item in enumerate(items)
    ]


def multiple_choice(shared: Path) -> Case:
    rows = choice_rows(shared)
    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/bert-base-uncased")
    task = fitted({"name": "multiple_choice"}, rows, tokenizer)
    assert task.settings.label_form == "number_from_1"
    torch.manual_seed(0)
    # what choices have in common cancels in the gradient, and with small weights that is nearly all
    config = BertConfig(vocab_size=30522, initializer_range=0.2, **SIZES, **task.model_settings())
    model = BertForMultipleChoice(config).eval()
    return Case(task, rows, model, without(rows, "label"), flat=True)


def choices_by_likelihood(shared: Path) -> Case:
    rows, tokenizer = choice_rows(shared), AutoTokenizer.from_pretrained(shared / "weights/tokenizers/qwen2")
    task = fitted({"name": "multiple_choice", "scoring": "likelihood_per_character"}, rows, tokenizer)
    return Case(task, rows, tiny_llama(tokenizer), without(rows, "label"), flat=True)


def tiny_llama(tokenizer: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, pad_token_id=tokenizer.pad_token_id, **SIZES)
    return LlamaForCausalLM(config).eval()


def embedding(shared: Path) -> Case:
    """Questions and the beginnings of their paragraphs, one of them with negatives."""
    file = shared / "data/qa/squad_v1/test-v1.1.json"
    paragraphs = [paragraph for article in json.loads(file.read_text())["data"] for paragraph in article["paragraphs"]]
    rows = [
        {"anchor": paragraph["qas"][0]["question"], "positive": paragraph["context"][: 40 + 20 * place]}
        for place, paragraph in enumerate(paragraphs[:100:20])
    ]
    rows[1]["negative"] = [paragraph["context"][:50] for paragraph in paragraphs[1:3]]
    return vectors(shared, {"name": "embedding", "temperature": 0.5}, rows, "anchor")


def embedding_by_scores(shared: Path) -> Case:
    with open(shared / "data/text_classification/sst2/dev.tsv") as file:
        texts = [line.partition("\t")[0] for line in islice(file, 12)]
    rows = [
        {"text": one, "text_pair": other, "score": place % 3 / 2}
        for place, (one, other) in enumerate(zip(texts[::2], texts[1::2], strict=True))
    ]
    return vectors(shared, {"name": "embedding", "pooling": "cls", "temperature": 0.5}, rows, "text")


def vectors(shared: Path, settings: dict[str, Any], rows: list[dict[str, Any]], asked: str) -> Case:
    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/bert-base-uncased")
    task = fitted(settings, rows, tokenizer)
    torch.manual_seed(0)
    # with small weights all texts have nearly one vector
    model = BertModel(BertConfig(vocab_size=30522, initializer_range=0.2, **SIZES), add_pooling_layer=False).eval()
    return Case(task, rows, model, [{asked: row[asked]} for row in rows], flat=True)


def reranking(shared: Path, **settings: Any) -> Case:
    """Questions with the beginnings of their paragraphs, and of one or two others."""
    file = shared / "data/qa/squad_v1/test-v1.1.json"
    paragraphs = [paragraph for article in json.loads(file.read_text())["data"] for paragraph in article["paragraphs"]]
    rows = [
        {
            "anchor": paragraph["qas"][0]["question"],
            "positive": paragraph["context"][: 40 + 20 * place],
            "negative": [other["context"][:50] for other in paragraphs[1 : 2 + place % 2]],
        }
        for place, paragraph in enumerate(paragraphs[:100:20])
    ]
    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/bert-base-uncased")
    task = fitted({"name": "reranking", **settings}, rows, tokenizer)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30522, initializer_range=0.2, **SIZES, **task.model_settings())
    return Case(task, rows, BertForSequenceClassification(config).eval(), without(rows, "negative"), flat=True)


def image_classification(shared: Path) -> Case:
    with tarfile.open(shared / "data/image_classification/cifar10_subset.tar.gz") as archive:
        members = [member for member in islice(archive, 0, 1000, 150) if member.isfile()]
        rows = [
            {"image": archive.extractfile(member).read(), "label": Path(member.name).parent.name} for member in members
        ]
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    task = fitted({"name": "image_classification"}, rows, processor)
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **SIZES, **task.model_settings())).eval()
    return Case(task, rows, model, without(rows, "label"))


class TwoTerms(TextClassification):
    """Besides the class, small logits: a second loss with a count of its own, as detection or a reward model has."""

    terms = {"loss": 1.0, "size": 0.5}

    def prepare(self, rows: Sequence[Row], *, labelled: bool = True) -> list[Sample]:
        samples = super().prepare(rows, labelled=labelled)
        return [replace(sample, counts={**sample.counts, "size": len(self.labels)}) for sample in samples]

    def count(self, batch: Batch) -> Counts:
        return {**super().count(batch), "size": len(batch) * len(self.labels)}

    def loss(self, model: torch.nn.Module, batch: Batch) -> Terms:
        sizes = model(**batch.inputs).logits.float().square().sum(dim=-1)
        return {**super().loss(model, batch), "size": weighted(sizes, batch)}


def two_terms(shared: Path) -> Case:
    case = text_single_label(shared)
    return replace(case, task=TwoTerms(case.task.settings, case.task.processor))


CASES: dict[str, Callable[[Path], Case]] = {
    "text_classification": text_single_label,
    "text_classification-pair-regression": text_pair_regression,
    "text_classification-multi_label": text_multi_label,
    "text_classification-two_terms": two_terms,
    "token_classification": token_classification,
    "causal_lm": causal_lm,
    "seq2seq": seq2seq,
    "question_answering": question_answering,
    "masked_lm": masked_lm,
    "masked_lm-whole_words": lambda shared: masked_lm(shared, whole_words=True, mask_ratio=0.3),
    "multiple_choice": multiple_choice,
    "multiple_choice-likelihood": choices_by_likelihood,
    "embedding": embedding,
    "embedding-scores": embedding_by_scores,
    "reranking": reranking,
    "reranking-pointwise": lambda shared: reranking(shared, loss="pointwise"),
    "image_classification": image_classification,
}


def fitted(settings: dict[str, Any], rows: list[dict], processor: Any) -> Task:
    """The task, with what the rows told written into its settings."""
    config = Config(task=settings, run_folder="run", model="model", data={"train": "rows.csv"})
    learned = build_task(config.task).fit(rows)
    return build_task(config.task.model_copy(update=learned), processor)


def without(rows: list[dict], column: str) -> list[dict]:
    return [{name: value for name, value in row.items() if name != column} for row in rows]


@pytest.fixture(scope="module")
def cases(shared: Path) -> dict[str, Case]:
    """Made on demand, once each."""

    class Made(dict[str, Case]):
        def __missing__(self, name: str) -> Case:
            return self.setdefault(name, CASES[name](shared))

    return Made()


def test_every_task_has_a_case():
    assert {name.split("-")[0] for name in CASES} == set(SETTINGS)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", CASES)
def test_contract(name: str, check: Callable[[Case], None], cases: dict[str, Case]):
    check(cases[name])


# ---------------------------------------------------------------- the battery finds a task that breaks a promise


class Unweighted(TextClassification):
    def loss(self, model: torch.nn.Module, batch: Batch) -> Terms:
        return super().loss(model, replace(batch, weights=None))


class OneTermUnweighted(TwoTerms):
    def loss(self, model: torch.nn.Module, batch: Batch) -> Terms:
        return {**super().loss(model, batch), "size": super().loss(model, replace(batch, weights=None))["size"]}


class Mean(TwoTerms):
    """The second term is a mean over the micro-batch."""

    def loss(self, model: torch.nn.Module, batch: Batch) -> Terms:
        terms = super().loss(model, batch)
        return {**terms, "size": terms["size"] / len(batch)}


class Leaking(TextClassification):
    def loss(self, model: torch.nn.Module, batch: Batch) -> Terms:
        return super().loss(model, replace(batch, inputs={**batch.inputs, **batch.extra}))


class LeakingInEvaluation(TextClassification):
    def outputs(self, model: torch.nn.Module, batch: Batch) -> dict[str, Any]:
        return super().outputs(model, replace(batch, inputs={**batch.inputs, **batch.extra}))


@pytest.mark.parametrize(
    ("broken", "checks"),
    [
        (Unweighted, ["a_weight_of_two_is_the_sample_twice", "a_weight_of_zero_is_the_sample_absent"]),
        (Unweighted, ["a_weight_of_two_is_the_sample_twice_in_a_flat_row"]),
        (Unweighted, ["a_weight_of_zero_is_the_sample_absent_in_a_flat_row"]),
        (OneTermUnweighted, ["a_weight_of_two_is_the_sample_twice", "a_weight_of_zero_is_the_sample_absent"]),
        (Mean, ["each_term_adds_up_by_itself", "a_batch_cut_in_two_gives_the_same_total"]),
        (Leaking, ["what_is_in_extra_never_reaches_the_model"]),
        (LeakingInEvaluation, ["what_is_in_extra_never_reaches_the_model"]),
    ],
)
def test_a_broken_task_is_found(broken: type[TextClassification], checks: list[str], shared: Path):
    case = text_single_label(shared)
    case = replace(case, task=broken(case.task.settings, case.task.processor))
    for check in checks:
        with pytest.raises(AssertionError):
            getattr(contract, f"check_{check}")(case)
