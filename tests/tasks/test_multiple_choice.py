"""Multiple choice against transformers' own model and collator, and by hand."""

from __future__ import annotations

import copy
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForMultipleChoice,
    AutoTokenizer,
    BertConfig,
    BertForMultipleChoice,
    DataCollatorForMultipleChoice,
    DistilBertConfig,
    DistilBertForMultipleChoice,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMultipleChoice,
)

from ftscale import train
from ftscale.base.errors import UserError
from ftscale.config import parse_config
from ftscale.config.schema import SourceConfig
from ftscale.config.tasks import SETTINGS
from ftscale.data.sample import Sample
from ftscale.data.sources import read_rows
from ftscale.models.layout import choose_layout
from ftscale.run.evaluate import evaluate_run
from ftscale.run.export import export_run
from ftscale.run.predict import predict_file
from ftscale.tasks import build_task
from ftscale.tasks.base import Task
from ftscale.tasks.batch import Batch
from ftscale.tasks.choice_rows import choices_of, label_form_of, place_of

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"initializer_range": 0.2}  # so that choices differ: what they have in common cancels in the gradient
COLUMNS = {"context": "p", "question": "What was the {asks-for} of this?", "choices": ["a1", "a2"]}


def task_of(shared: Path, **settings: Any) -> Task:
    names = ["input_ids", "token_type_ids", "attention_mask"]
    processor = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/bert-base-uncased", model_input_names=names)
    settings = {"name": "multiple_choice", "label_form": "number_from_0", **settings}
    return build_task(SETTINGS["multiple_choice"](**settings), processor)


def numbered(samples: list[Sample]) -> list[Sample]:
    return [replace(sample, number=number) for number, sample in enumerate(samples)]


def copa_rows(shared: Path, number: int) -> list[dict[str, Any]]:
    """Balanced COPA as its columns stand there, its label a number from 1."""
    items = ElementTree.parse(shared / "data/multiple_choice/balanced_copa/balacopa-dev-all.xml").getroot()[:number]
    texts = ("p", "a1", "a2")
    return [
        {"asks-for": item.get("asks-for"), **{name: item.findtext(name) for name in texts}}
        | {"label": int(item.get("most-plausible-alternative"))}
        for item in items
    ]


def rows_of_tasks(shared: Path, number: int) -> list[dict[str, Any]]:
    """The same as the task's rows, a number from 0."""
    return [
        {
            "context": row["p"],
            "question": COLUMNS["question"].format(**row),
            "choices": [row["a1"], row["a2"]],
            "label": row["label"] - 1,
        }
        for row in copa_rows(shared, number)
    ]


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize(
    ("choices", "texts", "names", "places"),
    [
        (["a", "b", "c"], ["a", "b", "c"], ["A", "B", "C"], [0, 1, 2]),
        ([" a ", None, 3, 4.0, ""], ["a", "3", "4"], ["A", "C", "D"], [0, 2, 3]),
        ({"text": ["a", "b"], "label": ["1", "2"]}, ["a", "b"], ["1", "2"], [0, 1]),
        ({"text": ["a", "b"]}, ["a", "b"], ["A", "B"], [0, 1]),
        ([{"label": "(A)", "text": "a"}, {"label": "(B)", "text": "b"}], ["a", "b"], ["(A)", "(B)"], [0, 1]),
        ({"A": "a", "C": "c"}, ["a", "c"], ["A", "C"], [0, 1]),
        ("['a', 'b']", ["a", "b"], ["A", "B"], [0, 1]),
        ('{"A": "a", "B": "b"}', ["a", "b"], ["A", "B"], [0, 1]),
        (
            "{'label': array(['A', 'B'], dtype=object), 'text': array(['a b', 'c'],\n      dtype=object)}",
            ["a b", "c"],
            ["A", "B"],
            [0, 1],
        ),
    ],
)
def test_choices_are_taken_in_the_forms_of_data_sets(choices: Any, texts: list, names: list, places: list):
    found = choices_of({"choices": choices})
    assert (found.texts, found.names, found.places) == (texts, names, places)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ("a or b", "choices = 'a or b' must be a list of texts"),
        (None, "choices = None must be a list of texts.*set drop: .missing."),
        (["a", "  "], r"choices = \['a', '  '\] has 1 with a text and must have two or more"),
        ([], "choices = .* has 0 with a text"),
        ([["a"], ["b"]], "choices = .* must be a list of texts"),
        ({"text": ["a", "b"], "label": ["A"]}, "choices has 2 texts and 1 labels"),
    ],
)
def test_other_forms_are_refused_with_the_row(choices: Any, said: str):
    with pytest.raises(UserError, match=f"rows.csv:3: {said}"):
        choices_of({"choices": choices, "_where": "rows.csv:3"})


FOUR = ["a", "b", "c", "d"]
NAMED = {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}


@pytest.mark.parametrize(
    ("rows", "form", "places"),
    [
        ([(FOUR, 0), (FOUR, 2)], "number_from_0", [0, 2]),  # SWAG, PIQA
        ([(FOUR, "3"), (FOUR, 1.0), (FOUR, "0")], "number_from_0", [3, 1, 0]),  # HellaSwag
        ([(FOUR, 1), (FOUR, 4)], "number_from_1", [0, 3]),
        ([(["Ann", "Bob"], "1"), (["Ann", "Bob"], "2")], "number_from_1", [0, 1]),  # WinoGrande
        ([(["w", "x", "y"], "B"), (["w", "x"], " a. ")], "name", [1, 0]),  # RACE
        ([(NAMED, "2"), (NAMED, 3)], "name", [1, 2]),  # ARC
        ([(["fire", "red  hot"], "red hot"), (["ice", "fire"], "fire")], "text", [1, 1]),  # SciQ
        ([(["2", "4", "8"], "4"), (["7", "1", "9"], 9)], "text", [1, 2]),
        ([(FOUR, [0, 0, 1, 0]), (FOUR, 0)], "number_from_0", [2, 0]),
        ([(FOUR, [3]), (FOUR, 0)], "number_from_0", [3, 0]),
        ([(["x", None, "y"], 2), (FOUR, 0)], "number_from_0", [1, 0]),  # an empty cell keeps its number
    ],
)
def test_how_labels_name_a_choice_is_told_by_all_rows(rows: list[Any], form: str, places: list[int]):
    rows = [{"choices": choices, "label": label} for choices, label in rows]
    assert label_form_of(rows) == form
    assert [place_of(row, choices_of(row), form) for row in rows] == places


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([1, 2], "label has numbers .* no row has the first or the last one; set task.label_form: number_from_0 or"),
        ([0, 4], "label = 4 is none of the 4 choices .* by number_from_0, as in the rows before it; mend the row"),
        (["A", 5], "label = 5 is none of the 4 choices .* by name, as in the rows before it"),
        (["e"], "label = 'e' is none of the 4 choices .* by name or text or number_from_0 or number_from_1"),
        ([True], "label = True is none of"),
        ([[0, 1]], r"label = \[0, 1\] is none of"),
        ([float("nan")], "label = nan must say which choice is right"),
        ([" "], "label = ' ' must say which choice is right"),
    ],
)
def test_labels_that_name_no_choice_are_refused(labels: list[Any], said: str):
    with pytest.raises(UserError, match=said):
        label_form_of(
            [{"choices": ["w", "x", "y", "z"] if "A" not in labels else FOUR, "label": one} for one in labels]
        )


def test_a_label_outside_the_rows_choices_is_refused_where_training_rows_told_the_form(shared: Path):
    row = {"question": "q", "choices": ["a", "b"], "label": 2, "_where": "rows.csv:3"}
    with pytest.raises(UserError, match="rows.csv:3: label = 2 is none of .* by task.label_form = number_from_0"):
        task_of(shared).prepare([row])


def test_columns_of_choices_keep_their_places_where_a_cell_is_empty(tmp_path: Path):
    (tmp_path / "rows.csv").write_text("item,A,B,C,key\nq,w,x,y,C\nq,w,,y,C\n")
    columns = {"question": "item", "choices": ["A", "B", "C"], "label": "key"}
    source = SourceConfig(path=str(tmp_path / "rows.csv"), columns=columns)
    rows = list(read_rows(source, roles=SETTINGS["multiple_choice"].columns))
    assert [row["choices"] for row in rows][1] in (["w", None, "y"], ["w", "", "y"])
    assert label_form_of(rows) == "name"
    assert [place_of(row, choices_of(row), "name") for row in rows] == [2, 1]


# ---------------------------------------------------------------- the model's own numbers


def test_sequences_are_the_context_with_question_and_choice_in_the_files_order(shared: Path):
    task, [row] = task_of(shared), rows_of_tasks(shared, 1)
    with_context, without = task.prepare([row, {**row, "context": " "}])
    assert task.show(row, with_context) == [
        (
            "[CLS] my body cast a shadow over the grass. [SEP] what was the cause of this? the sun was rising. [SEP]",
            True,
        ),
        ("\n", False),
        (
            "[CLS] my body cast a shadow over the grass. [SEP] what was the cause of this? the grass was cut. [SEP]",
            False,
        ),
    ]
    assert task.show(row, without)[0] == ("[CLS] what was the cause of this? [SEP] the sun was rising. [SEP]", True)


def theirs(task: Task, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """(rows, choices, tokens) as transformers' run_swag makes them: pairs of texts, by its own collator."""
    features = [
        task.processor([row["context"]] * 2, [f"{row['question']} {choice}" for choice in row["choices"]])
        | {"label": row["label"]}
        for row in rows
    ]
    return dict(DataCollatorForMultipleChoice(task.processor)([dict(feature) for feature in features]))


def tiny(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "bert":
        return BertForMultipleChoice(BertConfig(vocab_size=30522, **SIZES)).eval()
    if kind == "roberta":
        config = RobertaConfig(vocab_size=30522, pad_token_id=0, type_vocab_size=2, **SIZES)
        return RobertaForMultipleChoice(config).eval()
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "initializer_range": 0.2}
    return DistilBertForMultipleChoice(DistilBertConfig(vocab_size=30522, **sizes)).eval()


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_logits_loss_and_gradient_are_those_of_transformers(shared: Path, kind: str):
    """Its own loss is a mean over rows, of inputs (rows, choices, tokens); ours a sum, padded and flat."""
    task, rows, model = task_of(shared), rows_of_tasks(shared, 5), tiny(kind)
    if kind == "distilbert":
        task.processor.model_input_names = ["input_ids", "attention_mask"]
    inputs = theirs(task, rows)
    assert ("token_type_ids" in inputs) == (kind != "distilbert")
    outputs = model(**inputs)
    outputs.loss.backward()
    expected = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    samples = numbered(task.prepare(rows))
    for layout in ("padded", "flat"):
        one = copy.deepcopy(model)
        one.zero_grad(set_to_none=True)
        if layout == "flat":
            found = choose_layout(one, wanted="flat", attention="auto", pooled=task.pools, encoder_decoder=False)
            assert found == "flat"
        batch = task.collate(samples, layout=layout, train=True)
        logits = task.outputs(one, batch)["logits"]
        torch.testing.assert_close(logits, outputs.logits.detach(), rtol=1e-4, atol=1e-6)
        loss = task.loss(one, batch)["loss"] / task.count(batch)["loss"]
        torch.testing.assert_close(loss, outputs.loss)
        loss.backward()
        gradients = {name: weight.grad for name, weight in one.named_parameters() if weight.grad is not None}
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)


def test_rows_of_unlike_number_have_a_softmax_each_over_their_own(shared: Path):
    task, [one, other] = task_of(shared), rows_of_tasks(shared, 2)
    rows = [one, {**other, "choices": [*other["choices"], "it rained", "she sang"], "label": 3}]
    model, samples = tiny("bert"), numbered(task.prepare(rows))
    batch = task.collate(samples, layout="padded", train=False)
    outputs = task.outputs(model, batch)
    assert outputs["logits"].shape == (2, 4)
    alone = [
        task.outputs(model, task.collate([sample], layout="padded", train=False))["logits"][0] for sample in samples
    ]
    losses = [-alone[0].log_softmax(dim=0)[one["label"]], -alone[1].log_softmax(dim=0)[3]]
    torch.testing.assert_close(outputs["losses"], torch.stack(losses))
    answers = task.predictions(outputs, batch, every=True)
    assert [list(answer["scores"]) for answer in answers] == [["0", "1"], ["0", "1", "2", "3"]]
    for answer, logits in zip(answers, alone, strict=True):
        assert list(answer["scores"].values()) == pytest.approx(logits.softmax(dim=0).tolist(), rel=1e-4)


# ---------------------------------------------------------------- by likelihood


def decoder(shared: Path, name: str, **settings: Any) -> tuple[Task, LlamaForCausalLM]:
    """A task that scores by likelihood, with the tokenizer of that name, and a model with its vocabulary."""
    processor = AutoTokenizer.from_pretrained(shared / "weights" / name)
    processor.pad_token = processor.pad_token or processor.eos_token
    settings = {"name": "multiple_choice", "label_form": "number_from_0", "scoring": "likelihood", **settings}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(processor), num_key_value_heads=2, **SIZES)
    return build_task(SETTINGS["multiple_choice"](**settings), processor), LlamaForCausalLM(config).eval()


def log_likelihood(model: LlamaForCausalLM, before: list[int], choice: list[int]) -> torch.Tensor:
    """As the sum over the choice's tokens of a forward of its own."""
    logits = model(torch.tensor([before + choice])).logits[0].log_softmax(dim=-1)
    return sum(logits[len(before) + place - 1, token] for place, token in enumerate(choice))


@pytest.mark.parametrize("scoring", ["likelihood", "likelihood_per_character"])
@pytest.mark.parametrize("name", ["tokenizers/qwen2", "stories260K"])
def test_likelihoods_loss_and_gradient_are_those_of_a_forward_for_each_choice(shared: Path, name: str, scoring: str):
    task, model = decoder(shared, name, scoring=scoring)
    rows = rows_of_tasks(shared, 3)
    rows[1] |= {"context": None, "choices": [*rows[1]["choices"], "it rained"]}
    losses = []
    for row in rows:
        before = task.processor(" ".join(filter(None, [row["context"], row["question"]])))["input_ids"]
        whole = [
            task.processor(f"{task.processor.decode(before, skip_special_tokens=True)} {choice}")["input_ids"]
            for choice in row["choices"]
        ]
        assert all(ids[: len(before)] == before for ids in whole)
        scores = torch.stack([log_likelihood(model, before, ids[len(before) :]) for ids in whole])
        if scoring == "likelihood_per_character":
            scores = scores / torch.tensor([len(choice) for choice in row["choices"]])
        losses.append(functional.cross_entropy(scores, torch.tensor(row["label"])))
    expected = torch.autograd.grad(sum(losses), list(model.parameters()))
    samples = numbered(task.prepare(rows))
    for layout in ("padded", "flat"):
        one = copy.deepcopy(model)
        if layout == "flat":
            choose_layout(one, wanted="flat", attention="auto", pooled=task.pools, encoder_decoder=False)
        batch = task.collate(samples, layout=layout, train=True)
        torch.testing.assert_close(task.outputs(one, batch)["losses"], torch.stack(losses).detach())
        found = torch.autograd.grad(task.loss(one, batch)["loss"], list(one.parameters()))
        for gradient, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5)


def test_before_a_choice_the_beginning_of_the_question_is_cut(shared: Path):
    task, _ = decoder(shared, "stories260K", max_length=20)
    question = "one day a little girl went to the park and saw a big tree and"
    [sample] = task.prepare([{"question": question, "choices": ["a cat", "a dog"], "label": 1}])
    texts = [text for text, _ in task.show({}, sample)[::2]]
    assert all(text.startswith("<s>") and question not in text for text in texts)
    assert [text[-11:] for text in texts] == ["e and a cat", "e and a dog"]
    assert (sample.truncated, sample.drop, max(sample.inputs["lengths"])) == (True, "", 20)
    task, _ = decoder(shared, "stories260K", max_length=3)
    [sample] = task.prepare([{"question": "one", "choices": ["a cat on a mat", "a"], "label": 1}])
    assert (sample.truncated, sample.drop) == (False, "choices_too_long")


def test_the_first_token_of_a_choice_is_scored_where_nothing_stands_before_it(shared: Path):
    task, _ = decoder(shared, "tokenizers/qwen2")  # which puts nothing before a text
    [sample] = task.prepare([{"question": "", "choices": ["cat", "dog"], "label": 1}])
    assert [label != -100 for label in sample.inputs["labels"]] == [True, False] * 2


def test_a_model_that_cannot_score_so_is_told_which_way_it_can(shared: Path):
    task, _ = decoder(shared, "tokenizers/qwen2")
    config = parse_config(
        {
            "task": {"name": "multiple_choice", "scoring": "likelihood"},
            "run_folder": "r",
            "model": "m",
            "data": {"train": "t.csv"},
        },
        source="the test",
    )
    [problem] = task.model_problems(config, BertConfig())
    assert problem.startswith("task.scoring = likelihood needs a model that reads from left to right")
    assert not task.model_problems(config, LlamaConfig())
    [problem] = task_of(shared).model_problems(config, LlamaConfig())
    assert problem.endswith("(llama); set task.scoring: likelihood, or name an encoder.")
    assert not task_of(shared).model_problems(config, BertConfig())


# ---------------------------------------------------------------- lengths


def test_what_is_cut_is_the_context_and_never_a_choice(shared: Path):
    [row] = rows_of_tasks(shared, 1)
    row["context"] = " ".join(["shadow"] * 50)
    task = task_of(shared, max_length=20)  # less is left of the context than question and choice have
    [sample] = task.prepare([row])
    assert (sample.truncated, sample.drop, sample.inputs["lengths"]) == (True, "", [20, 20])
    assert sample.cost == len(sample.inputs["input_ids"]) == 40
    for text, _ in task.show(row, sample)[::2]:
        assert text.startswith("[CLS] shadow shadow")
    ends = [text.partition(" [SEP] ")[2] for text, _ in task.show(row, sample)[::2]]
    assert ends == [f"what was the cause of this? {end} [SEP]" for end in ("the sun was rising.", "the grass was cut.")]


def test_a_row_whose_choices_leave_no_room_is_dropped(shared: Path):
    rows = rows_of_tasks(shared, 3)
    rows[1]["choices"][0] = " ".join(["grass"] * 40)
    samples = task_of(shared, max_length=24).prepare(rows)
    assert [(sample.truncated, sample.drop) for sample in samples] == [
        (False, ""),
        (False, "choices_too_long"),
        (True, ""),
    ]


@pytest.mark.parametrize("too_long", ["drop", "raise"])
def test_too_long_rows_are_dropped_or_refused_where_that_is_asked_for(shared: Path, too_long: str):
    task, [row] = task_of(shared, max_length=12, too_long=too_long), rows_of_tasks(shared, 1)
    if too_long == "drop":
        [sample] = task.prepare([row])
        assert (sample.drop, sample.truncated) == ("too_long", False)
        return
    with pytest.raises(UserError, match="24 tokens are more than task.max_length = 12; shorten the row"):
        task.prepare([row])


# ---------------------------------------------------------------- scores and answers


def test_scores_are_those_by_hand(shared: Path):
    task = task_of(shared)
    evaluator, least = task.evaluator(), torch.finfo(torch.float32).min
    logits = torch.tensor([[0.0, 1.0, least], [2.0, 0.0, 1.0], [0.0, 0.0, 3.0], [1.0, 0.0, least]])
    outputs = {"logits": logits, "losses": torch.tensor([0.5, 1.0, 1.5, 2.0])}
    notes = [{"texts": ["a", "b", "c"]}] * 4
    evaluator.update(outputs, Batch({}, torch.arange(4), torch.tensor([1, 2, 2, 1]), notes=notes))
    assert evaluator.compute() == {"loss": 1.25, "accuracy": 0.5}
    columns = evaluator.columns(evaluator.in_order())
    assert (columns["prediction"], columns["label"]) == (["b", "a", "c", "a"], ["b", "c", "c", "b"])


@pytest.mark.parametrize(("form", "chosen"), [("number_from_0", 3), ("number_from_1", 4), ("name", "D"), ("text", "D")])
def test_an_answer_names_the_choice_as_labels_do(shared: Path, form: str, chosen: Any):
    task = task_of(shared, label_form=form)
    [sample] = task.prepare([{"question": "q", "choices": ["x", "y", None, "z"]}], labelled=False)
    batch = task.collate([sample], layout="padded", train=False)
    [answer] = task.predictions({"logits": torch.tensor([[0.0, 1.0, 2.0]])}, batch)
    assert answer == {"prediction": "z", "score": pytest.approx(0.6652, abs=1e-4), "choice": chosen}


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a CSV of Balanced COPA, a column a choice."""
    folder = tmp_path_factory.mktemp("copa")
    rows = copa_rows(shared, 40)
    with open(folder / "rows.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    model = folder / "model"
    tiny("bert").save_pretrained(model)
    task_of(shared).processor.save_pretrained(model)
    source = {"path": str(folder / "rows.csv"), "columns": COLUMNS}
    config = {
        "task": "multiple_choice",
        "run_folder": str(folder / "run"),
        "model": str(model),
        "data": {"train": source | {"limit": 32}, "eval": source, "cache_dir": str(folder / "cache")},
        "batch": {"global_size": 8},
        "train": {"max_steps": 3},
        "optimizer": {"lr": 1e-3},
        "adapter": {"method": "lora", "r": 2, "target_modules": ["query"]},
    }
    train(parse_config(config, source="the test"))
    return folder


def test_what_rows_told_is_in_the_runs_settings(run: Path):
    assert "label_form: number_from_1" in (run / "run/config.yaml").read_text()


def test_predictions_evaluation_and_export_agree_with_transformers(run: Path):
    predict_file(run / "run", str(run / "rows.csv"), out=run / "answers.jsonl", every_score=True)
    answers = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    scores = evaluate_run(run / "run", data=str(run / "rows.csv"))
    export_run(run / "run", run / "exported", merge=True)
    model = AutoModelForMultipleChoice.from_pretrained(run / "exported").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "exported")
    right = []
    for answer in answers:
        question = COLUMNS["question"].format(**answer)
        pairs = tokenizer([answer["p"]] * 2, [f"{question} {answer[name]}" for name in ("a1", "a2")], padding=True)
        with torch.no_grad():
            [logits] = model(**{name: torch.tensor([ids]) for name, ids in pairs.items()}).logits
        probabilities = logits.softmax(dim=0).tolist()
        best = int(probabilities[1] > probabilities[0])
        assert list(answer["scores"].values()) == pytest.approx(probabilities, abs=1e-4)
        assert answer["score"] == pytest.approx(max(probabilities), abs=1e-4)
        assert (answer["prediction"], answer["choice"]) == (answer[f"a{best + 1}"], best + 1)
        right.append(answer["choice"] == int(answer["label"]))
    assert scores["accuracy"] == pytest.approx(sum(right) / len(right))
