"""Causal language modelling, on a real small Llama."""

from __future__ import annotations

import json
import math
import pickle
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftscale.base.errors import UserError
from ftscale.config.tasks.base import GenerationSettings
from ftscale.config.tasks.causal_lm import CausalLMSettings
from ftscale.data.sample import Sample
from ftscale.models.attention import use_flat
from ftscale.tasks.batch import Batch
from ftscale.tasks.causal_lm import CausalLM
from ftscale.tasks.rows import prepare_rows

STORIES = [
    {"text": "Once upon a time, there was a little girl named Lily. She loved to play."},
    {"text": "Tom had a dog."},
    {"text": "The sun was hot, so they sat in the shade of the big tree and ate ice cream until it was dark."},
]


@pytest.fixture(scope="module")
def tokenizer(shared: Path):
    return AutoTokenizer.from_pretrained(shared / "weights/stories260K")


@pytest.fixture(scope="module")
def model(shared: Path):
    return AutoModelForCausalLM.from_pretrained(shared / "weights/stories260K").eval()


@pytest.fixture
def flat_model(shared: Path):
    model = AutoModelForCausalLM.from_pretrained(shared / "weights/stories260K").eval()
    use_flat(model)
    return model


def task_of(tokenizer=None, **settings) -> CausalLM:
    return CausalLM(CausalLMSettings(**settings), tokenizer)


def batch_of(task: CausalLM, samples: list[Sample], *, layout="padded", train=False) -> Batch:
    numbered = [replace(sample, number=number) for number, sample in enumerate(samples)]
    return task.collate(numbered, layout=layout, train=train)


def of_its_own(tokenizer):
    """A copy, for a task that sets its template."""
    return deepcopy(tokenizer)


def learned(sample: Sample, tokenizer) -> str:
    return tokenizer.decode([label for label in sample.label if label != -100])


# ---------------------------------------------------------------- the loss


def own_loss(model, sample: Sample) -> float:
    """The sum of transformers' own loss of one sample, alone in its batch."""
    loss = model(input_ids=torch.tensor([sample.inputs["input_ids"]]), labels=torch.tensor([sample.label])).loss
    return loss.item() * sample.targets


def test_the_loss_is_the_sum_of_the_models_own_losses_padded_and_flat(model, flat_model, tokenizer):
    rows = [*STORIES, {"prompt": "Tom saw a big", "completion": " red ball in the park."}]
    task = task_of(tokenizer)
    samples = [sample for row in rows for sample in task.prepare([row])]
    expected = sum(own_loss(model, sample) for sample in samples)
    padded, flat = (batch_of(task, samples, layout=layout) for layout in ("padded", "flat"))
    assert task.count(padded) == task.count(flat) == {"loss": sum(sample.targets for sample in samples)}
    assert task.loss(model, padded)["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert task.loss(flat_model, flat)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_padding_and_neighbours_do_not_change_the_loss_of_a_sample(model, tokenizer):
    task = task_of(tokenizer)
    short, _, long = task.prepare(STORIES)
    alone = task.outputs(model, batch_of(task, [short]))["losses"]
    beside = task.outputs(model, batch_of(task, [short, long]))["losses"]
    assert beside[0].item() == pytest.approx(alone[0].item(), rel=1e-5)


def test_batches_hold_at_each_position_the_label_of_the_next(tokenizer):
    task = task_of(tokenizer)
    first = Sample({"input_ids": [1, 2, 3]}, [-100, 2, 3], cost=3, counts={"loss": 2})
    second = Sample({"input_ids": [4, 5]}, [-100, 5], cost=2, counts={"loss": 1})
    padded = batch_of(task, [first, second])
    assert padded.labels.tolist() == [[2, 3, -100], [5, -100, -100]]
    assert padded.inputs["input_ids"].tolist() == [[1, 2, 3], [4, 5, tokenizer.eos_token_id]]
    assert padded.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    flat = batch_of(task, [first, second], layout="flat")
    assert flat.labels.tolist() == [[2, 3, -100, 5, -100]]  # 3 does not predict the 4 of another sample
    assert flat.inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert flat.inputs["cu_seq_lens_q"].tolist() == [0, 3, 5]
    boundaries = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
    assert set(flat.inputs) == {"input_ids", "position_ids", *boundaries}


# ---------------------------------------------------------------- rows to samples


def test_every_token_of_a_text_is_a_target_but_the_first_and_an_end_token_is_added(tokenizer):
    (sample,) = task_of(tokenizer).prepare([{"text": "Tom had a dog."}])
    ids = [*tokenizer("Tom had a dog.")["input_ids"], tokenizer.eos_token_id]
    assert sample == Sample({"input_ids": ids}, [-100, *ids[1:]], cost=len(ids), counts={"loss": len(ids) - 1})
    assert ids[0] == tokenizer.bos_token_id


def test_a_completion_and_its_end_are_the_targets(tokenizer):
    row = {"prompt": "Q: 2+2?\nA:", "completion": " 4"}
    (sample,) = task_of(tokenizer).prepare([row])
    assert tokenizer.decode(sample.inputs["input_ids"], skip_special_tokens=True) == "Q: 2+2?\nA: 4"
    assert learned(sample, tokenizer) == "4</s>"
    assert sample.targets == 3  # " ", "4" and the end
    (everything,) = task_of(tokenizer, targets="all").prepare([row])
    assert everything.targets == len(everything.inputs["input_ids"]) - 1


def test_a_completion_that_would_join_the_prompts_last_token_is_tokenised_apart(shared):
    gpt2 = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/gpt2")
    (sample,) = task_of(gpt2).prepare([{"prompt": "The answer is ", "completion": "yes"}])
    prompt = gpt2("The answer is ")["input_ids"]
    assert sample.inputs["input_ids"] == [*prompt, *gpt2("yes")["input_ids"], gpt2.eos_token_id]
    assert learned(sample, gpt2) == "yes<|endoftext|>"


def test_turns_in_a_prompt_are_given_and_those_of_the_completion_learned(shared):
    qwen2 = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/qwen2")
    prompt = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "2+2?"},
    ]
    row = {"prompt": prompt, "completion": [{"role": "assistant", "content": "4"}]}
    (sample,) = task_of(qwen2).prepare([row])
    assert learned(sample, qwen2) == "4<|im_end|>"


def test_real_alpaca_rows_learn_exactly_their_outputs(shared):
    rows = json.loads((shared / "data/sft/llamafactory_demo/alpaca_en_demo.json").read_text())[:200]
    gpt2 = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/gpt2")
    task = task_of(gpt2, chat_template="alpaca")
    for row, sample in zip(rows, task.prepare(rows), strict=True):
        assert learned(sample, gpt2) == row["output"] + "<|endoftext|>"
        assert sample.targets == len(gpt2(row["output"])["input_ids"]) + 1


def test_rows_with_nothing_to_learn_say_so(tokenizer):
    rows = [{"text": ""}, {"prompt": "Hi", "completion": ""}, {"instruction": "Hi", "output": " "}]
    samples = task_of(of_its_own(tokenizer), chat_template="alpaca").prepare(rows)
    assert [(sample.targets, sample.drop) for sample in samples] == [(0, "no_target")] * 3


def test_too_long_rows_are_cut_at_the_end_dropped_or_refused(tokenizer):
    (whole,) = task_of(tokenizer).prepare(STORIES[:1])
    (cut,) = task_of(tokenizer, max_length=8).prepare(STORIES[:1])
    assert (cut.inputs["input_ids"], cut.targets) == (whole.inputs["input_ids"][:8], 7)
    assert (whole.truncated, cut.truncated, cut.drop) == (False, True, "")
    (dropped,) = task_of(tokenizer, max_length=8, too_long="drop").prepare(STORIES[:1])
    assert dropped.drop == "too_long"
    with pytest.raises(UserError, match="more than task.max_length = 8"):
        task_of(tokenizer, max_length=8, too_long="raise").prepare([{**STORIES[0], "_where": "a.txt line 1"}])
    prompt = {"prompt": STORIES[0]["text"], "completion": "x"}
    assert task_of(tokenizer, max_length=8).prepare([prompt])[0].drop == "no_target"


def test_joined_texts_fill_blocks_and_keep_every_token_in_order(tokenizer):
    task = task_of(tokenizer, join_texts=True, max_length=16)
    blocks = task.prepare([*STORIES, {"text": ""}])
    assert [block.cost for block in blocks[:-1]] == [16] * (len(blocks) - 1)
    separate = [token for sample in task_of(tokenizer).prepare(STORIES) for token in sample.inputs["input_ids"]]
    assert [token for block in blocks for token in block.inputs["input_ids"]] == separate
    assert blocks[0].targets == 15
    assert {block.rows for block in blocks} == {(0, 4)}
    assert not task.by_row
    asked = prepare_rows(task, [{"text": "a"}, {"text": " ", "_drop": ("blank",)}, {"text": "b"}], labelled=False)
    assert sorted((sample.rows, sample.drop) for sample in asked) == [((0, 1), ""), ((1, 2), "blank"), ((2, 3), "")]
    with pytest.raises(UserError, match="task.join_texts = true joins plain texts"):
        task.prepare([{"prompt": "a", "completion": "b"}])


def test_a_problem_names_the_row(tokenizer):
    row = {"messages": [{"role": "usr", "content": "x"}], "_where": "chats.jsonl line 7"}
    with pytest.raises(UserError, match="chats.jsonl line 7: messages: role = 'usr' is not known; did you mean 'user'"):
        task_of(of_its_own(tokenizer), chat_template="alpaca").prepare([row])


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(UserError, match="task.answer_pattern = 'x' needs generated texts"):
        task_of(answer_pattern="x")
    with pytest.raises(UserError, match=r"task.answer_pattern = '\(' is not a regular expression"):
        task_of(answer_pattern="(", generate=GenerationSettings())
    with pytest.raises(UserError, match="did you mean 'alpaca'"):
        task_of(chat_template="alpacca")


# ---------------------------------------------------------------- evaluation


def scores_of(task, model, rows, *, layout="padded") -> dict[str, float]:
    evaluator = task.evaluator()
    batch = batch_of(task, task.prepare(rows), layout=layout)
    evaluator.update(task.outputs(model, batch), batch)
    return evaluator.compute()


def test_metrics_are_per_target_not_means_of_means(model, flat_model, tokenizer):
    task = task_of(tokenizer)
    samples = task.prepare(STORIES)
    targets = sum(sample.targets for sample in samples)
    loss = sum(own_loss(model, sample) for sample in samples) / targets
    right = 0
    for sample in samples:
        ids = torch.tensor(sample.inputs["input_ids"])
        guesses = model(input_ids=ids[None]).logits[0, :-1].argmax(-1)
        right += (guesses == ids[1:]).sum().item()
    expected = {"loss": loss, "perplexity": math.exp(loss), "token_accuracy": right / targets}
    assert scores_of(task, model, STORIES) == pytest.approx(expected, rel=1e-5)
    assert scores_of(task, flat_model, STORIES, layout="flat") == pytest.approx(expected, rel=1e-5)


def test_ranks_together_score_as_one_and_a_row_seen_twice_counts_once(model, tokenizer):
    task = task_of(tokenizer)
    samples = [replace(sample, number=number) for number, sample in enumerate(task.prepare(STORIES))]
    ranks = []
    for share in (samples[:2], [samples[2], samples[0]]):
        evaluator = task.evaluator()
        batch = task.collate(share, layout="padded", train=False)
        evaluator.update(task.outputs(model, batch), batch)
        ranks.append(evaluator)
    ranks[0].merge(pickle.loads(pickle.dumps(ranks[1].records)))
    assert ranks[0].compute() == pytest.approx(scores_of(task, model, STORIES), rel=1e-5)


def greedy(model, tokenizer, prompt: str, tokens: int) -> str:
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    written = model.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)


def test_generation_from_prompts_of_unequal_length_scores_against_the_completions(model, flat_model, tokenizer):
    prompts = ["Once upon a time, there was a", "Tom had a big"]
    rows = [
        {"prompt": prompts[0], "completion": greedy(model, tokenizer, prompts[0], 12)},
        {"prompt": prompts[1], "completion": greedy(model, tokenizer, prompts[1], 12)},
        {"prompt": prompts[1], "completion": "zebra"},
    ]
    task = task_of(tokenizer, generate=GenerationSettings(max_new_tokens=12))
    for of_layout, layout in ((model, "padded"), (flat_model, "flat")):
        batch = batch_of(task, task.prepare(rows), layout=layout)
        predictions = task.outputs(of_layout, batch)["predictions"]
        assert predictions[:2] == [row["completion"] for row in rows[:2]]
        scores = scores_of(task, of_layout, rows, layout=layout)
        assert scores["exact_match"] == pytest.approx(2 / 3)
        assert scores["rouge1"] == scores["rouge2"] == scores["rougeL"] == pytest.approx(2 / 3)
        assert set(scores) == {"loss", "perplexity", "token_accuracy", "exact_match", "rouge1", "rouge2", "rougeL"}
    assert [note["reference"] for note in batch.notes] == [row["completion"] for row in rows]
    assert batch_of(task, task.prepare(rows), train=True).notes == []


def test_a_generated_text_ends_at_the_end_token_which_is_not_part_of_it(shared, model, tokenizer):
    ending = AutoTokenizer.from_pretrained(shared / "weights/stories260K", eos_token=".")
    prompt = "Once upon a time, there was a little girl named"
    unended = greedy(model, tokenizer, prompt, 40)
    assert "." in unended
    task = task_of(ending, generate=GenerationSettings(max_new_tokens=40))
    batch = batch_of(task, task.prepare([{"prompt": prompt}], labelled=False))
    assert task.outputs(model, batch)["predictions"] == [unended.partition(".")[0]]


def test_the_answers_of_real_problems_are_compared_by_the_pattern(shared, model, tokenizer):
    lines = (shared / "data/math/gsm8k/test.jsonl").read_text().splitlines()[:4]
    rows = [{"instruction": row["question"], "output": row["answer"]} for row in map(json.loads, lines)]
    settings = {"generate": GenerationSettings(max_new_tokens=4), "chat_template": "alpaca", "max_length": 480}
    task = task_of(of_its_own(tokenizer), answer_pattern=r"#### (.+)", **settings)
    batch = batch_of(task, task.prepare(rows))
    outputs = task.outputs(model, batch)
    outputs["predictions"] = ["She sells 16.\n#### 18", "3", "#### 70000 or\n#### 7", "I think\n#### 540"]
    evaluator = task.evaluator()
    evaluator.update(outputs, batch)
    assert evaluator.compute()["exact_match"] == 0.5  # 18 and 540; the others have no mark or another number
    with pytest.raises(UserError, match="must match each reference"):
        task.prepare([{**rows[0], "output": "no mark"}])


def test_a_chat_that_the_user_ends_is_not_generated_and_a_text_cannot_be(model, tokenizer):
    settings = {"generate": GenerationSettings(max_new_tokens=2), "chat_template": "alpaca"}
    task = task_of(of_its_own(tokenizer), **settings)
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
        {"role": "user", "content": "?"},
    ]
    scores = scores_of(task, model, [{"messages": turns}])
    assert set(scores) == {"loss", "perplexity", "token_accuracy"}
    with pytest.raises(UserError, match="task.generate needs a turn or a completion"):
        task.prepare([{"text": "Hi"}])


# ---------------------------------------------------------------- prediction


def test_prediction_needs_no_labels_and_scores_what_it_wrote(model, flat_model, tokenizer):
    task = task_of(tokenizer, generate=GenerationSettings(max_new_tokens=6))
    rows = [{"prompt": "Tom had a big"}, {"text": "Once upon a time, there was a little"}]
    samples = [sample for row in rows for sample in task.prepare([row], labelled=False)]
    for of_layout, layout in ((model, "padded"), (flat_model, "flat")):
        batch = batch_of(task, samples, layout=layout)
        assert batch.labels is None
        first, second = task.predictions(task.outputs(of_layout, batch), batch)
        assert first["prediction"] == greedy(model, tokenizer, "Tom had a big", 6)
        assert second["prediction"] == greedy(model, tokenizer, rows[1]["text"], 6)
        prompt = tokenizer("Tom had a big", return_tensors="pt")["input_ids"]
        ids = model.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=2)
        log_probabilities = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        scores = log_probabilities.gather(1, ids[0, 1:, None])[prompt.shape[1] - 1 :]
        assert first["score"] == pytest.approx(scores.mean().item(), rel=1e-4)


def test_a_long_prompt_keeps_its_end(tokenizer):
    (sample,) = task_of(tokenizer, max_length=8).prepare([{"text": STORIES[0]["text"]}], labelled=False)
    assert sample.inputs["input_ids"] == tokenizer(STORIES[0]["text"])["input_ids"][-8:]
    assert (sample.truncated, sample.drop) == (True, "")


def test_the_task_and_how_it_collates_go_to_other_processes(tokenizer):
    task = task_of(of_its_own(tokenizer), chat_template="alpaca", generate=GenerationSettings())
    travelled = pickle.loads(pickle.dumps(task))
    [sample] = travelled.prepare([{"instruction": "Hi", "output": "Yo"}])
    collate = pickle.loads(pickle.dumps(partial(travelled.collate, layout="flat", train=False)))
    assert collate([replace(sample, number=5)]).rows.tolist() == [5]


@torch.no_grad()
@pytest.mark.parametrize("layout", ["padded", "flat"])
def test_losses_by_position_are_those_of_each_token_in_transformers(tokenizer, model, flat_model, layout: str):
    """Tokens with 1 to 15 before them are the first stretch, with 16 to 31 the second, with 32 to 63 the third."""
    task = task_of(tokenizer, max_length=128)
    samples = prepare_rows(task, [*STORIES, {"text": " ".join(story["text"] for story in STORIES)}])
    batch = batch_of(task, samples, layout=layout)
    evaluator = task.evaluator()
    evaluator.update(task.outputs(flat_model if layout == "flat" else model, batch), batch)
    columns = evaluator.columns(evaluator.in_order())
    for place, sample in enumerate(samples):
        ids = torch.tensor([sample.inputs["input_ids"]])
        losses = -model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]  # of tokens 1, 2, ...
        parts = [losses[:15], losses[15:31], losses[31:63], losses[63:127]]
        expected = [part for part in parts if len(part)]
        assert columns["targets_by_position"][place] == [len(part) for part in expected]
        assert columns["losses_by_position"][place] == pytest.approx(
            [float(part.mean()) for part in expected], rel=1e-4
        )
    assert [len(of_row) for of_row in columns["losses_by_position"]] == [2, 1, 3, 4]


def test_a_stretch_without_a_target_has_no_loss(tokenizer, model):
    task = task_of(tokenizer, max_length=128)
    row = {"prompt": STORIES[2]["text"], "completion": STORIES[0]["text"]}
    batch = batch_of(task, prepare_rows(task, [row]))
    evaluator = task.evaluator()
    evaluator.update(task.outputs(model, batch), batch)
    columns = evaluator.columns(evaluator.in_order())
    assert columns["losses_by_position"][0][0] is None
    assert columns["targets_by_position"][0][0] == 0
    assert sum(columns["targets_by_position"][0]) == columns["targets"][0]
