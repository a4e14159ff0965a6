"""What every task promises (ftscale/tasks/base.py), as checks that any task's case goes through."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from ftscale.models.layout import choose_layout
from ftscale.tasks.base import KEPT, Batch, Layout, Sample, Task, model_inputs
from ftscale.tasks.collate import IGNORED

SUM = {"rtol": 2e-5, "atol": 1e-6}  # float32 sums in another order


@dataclass
class Case:
    """A task with real rows of uneven length, a real processor and a tiny model, in eval mode."""

    task: Task
    rows: list[dict[str, Any]]
    processor: Any
    model: torch.nn.Module
    unlabelled: list[dict[str, Any]]
    flat: bool = False
    """The model takes flat rows."""
    pooled: bool = False
    """The head makes one vector a sample."""

    def samples(self) -> list[Sample]:
        """Numbered as the loader does it."""
        samples = self.task.prepare(self.rows, self.processor)
        return [{**sample, "row": row, "epoch": 0, "seed": 0} for row, sample in enumerate(samples)]

    def collate(self, samples: list[Sample], *, layout: Layout = "padded", train: bool = True) -> Batch:
        return self.task.collator(self.processor, layout=layout, train=train)(samples)

    def is_token_level(self) -> bool:
        return self.collate(self.samples())["labels"].ndim == 2 and not self.pooled


def check_sample_says_its_cost_and_targets(case: Case) -> None:
    samples = case.samples()
    assert all(sample["note"] in KEPT for sample in samples)
    assert len({sample["length"] for sample in samples}) > 1 or "image_path" in samples[0]
    for sample in samples:
        assert isinstance(sample["length"], int)
        assert int(case.task.count(case.collate([sample]))) == sample["targets"] > 0


def check_prepare_is_deterministic(case: Case) -> None:
    samples = case.task.prepare(case.rows, case.processor)
    assert case.task.prepare(case.rows, case.processor) == samples
    assert (
        case.task.prepare(case.rows[:2], case.processor) + case.task.prepare(case.rows[2:], case.processor) == samples
    )
    travelled = pickle.loads(pickle.dumps(case.task))  # as to the worker processes that tokenise
    assert travelled.prepare(case.rows, case.processor) == samples


def check_samples_survive_arrow(case: Case) -> None:
    """Prepared data lies in Arrow files: what comes back must collate to the same batch."""
    from datasets import Dataset

    samples = case.samples()
    stored = list(Dataset.from_list(samples))
    _assert_same_batch(case.collate(stored, train=False), case.collate(samples, train=False))


def check_batch_feeds_the_model(case: Case) -> None:
    samples = case.samples()
    batch = case.collate(samples)
    assert batch["row"].tolist() == list(range(len(samples)))
    assert batch["row"].dtype == torch.int64
    case.model(**_forward_inputs(case, batch))
    loss, gradients = _loss_and_gradients(case, batch)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert loss.isfinite()
    assert loss > 0
    assert case.task.count(batch).dtype == torch.int64
    assert case.task.count(batch).shape == ()
    assert any(gradient.abs().max() > 0 for gradient in gradients.values())


def check_sum_and_count_add_up(case: Case) -> None:
    """Each sample alone, without padding, against all in one batch: loss, gradient and count."""
    samples = case.samples()
    whole = case.collate(samples)
    parts = [case.collate([sample]) for sample in samples]
    _assert_total(case, whole, parts)


def check_a_batch_cut_in_two_gives_the_same_total(case: Case) -> None:
    samples = sorted(case.samples(), key=lambda sample: -sample["length"])
    _assert_total(case, case.collate(samples), [case.collate(samples[:1]), case.collate(samples[1:])])


def check_padding_does_not_change_the_loss(case: Case) -> None:
    """More padding, filled with arbitrary tokens."""
    batch = case.collate(case.samples())
    if "attention_mask" not in batch:
        pytest.skip("an image has no padding")
    padded = _with_more_padding(batch, filler=17)
    loss, gradients = _loss_and_gradients(case, batch)
    again, others = _loss_and_gradients(case, padded)
    torch.testing.assert_close(again, loss, **SUM)
    _assert_same_gradients(others, gradients)
    assert case.task.count(padded) == case.task.count(batch)


def check_flat_equals_padded(case: Case) -> None:
    if not case.flat:
        pytest.skip("the model takes padded rows only")
    samples = case.samples()
    padded = _loss_and_gradients(case, case.collate(samples))
    records = _records(case, [case.collate(samples, train=False)])
    flat = copy.deepcopy(case)
    layout = choose_layout(flat.model, wanted="flat", attention="auto", pooled=case.pooled, encoder_decoder=False)
    assert layout == "flat"
    batch = flat.collate(samples, layout="flat")
    assert batch["input_ids"].shape == (1, sum(len(sample["input_ids"]) for sample in samples))
    loss, gradients = _loss_and_gradients(flat, batch)
    torch.testing.assert_close(loss, padded[0], **SUM)
    _assert_same_gradients(gradients, padded[1])
    assert flat.task.count(batch) == sum(sample["targets"] for sample in samples)
    scores = flat.task.evaluator().score(_records(flat, [flat.collate(samples, layout="flat", train=False)]))
    assert scores == pytest.approx(case.task.evaluator().score(records), rel=1e-4)


def check_labels_outside_the_count_get_no_gradient(case: Case) -> None:
    """With all labels of a sample taken away, loss, gradient and count are those of the other samples."""
    if not case.is_token_level():
        pytest.skip("each row is a target")
    samples = case.samples()
    batch = case.collate(samples)
    batch["labels"][0] = IGNORED
    _assert_total(case, batch, [case.collate(samples[1:])])
    batch["labels"][:] = IGNORED
    loss, gradients = _loss_and_gradients(case, batch)
    assert loss == 0
    assert case.task.count(batch) == 0
    assert all(gradient.abs().max() == 0 for gradient in gradients.values())


def check_outputs_hold_the_loss(case: Case) -> None:
    samples = case.samples()
    outputs = case.task.outputs(case.model, case.collate(samples, train=False), case.processor)
    loss = case.task.loss(case.model, case.collate(samples))
    torch.testing.assert_close(outputs["loss"], loss.detach(), **SUM)
    assert not outputs["loss"].requires_grad


def check_scores_do_not_depend_on_batches(case: Case) -> None:
    """One batch, or rows in another order and some twice: the same scores, and the loss is a mean over targets."""
    samples = case.samples()
    whole = case.task.evaluator()
    batch = case.collate(samples, train=False)
    outputs = case.task.outputs(case.model, batch, case.processor)
    whole.update(outputs, batch)
    parts, other_rank = case.task.evaluator(), case.task.evaluator()
    for evaluator, group in ((parts, samples[2:]), (other_rank, samples[1::-1]), (other_rank, samples[-1:])):
        batch = case.collate(list(group), train=False)
        evaluator.update(case.task.outputs(case.model, batch, case.processor), batch)
    parts.merge(pickle.loads(pickle.dumps(other_rank.records)))
    scores = whole.compute()
    assert parts.compute() == pytest.approx(scores, rel=1e-4)
    total = sum(sample["targets"] for sample in samples)
    assert scores["loss"] == pytest.approx(outputs["loss"].item() / total, rel=1e-5)
    assert case.task.best_metric[0] in scores
    assert set(scores) <= set(case.task.metric_names())
    json.dumps(scores)
    assert all(type(value) is float for value in scores.values())


def check_predictions_are_one_a_row(case: Case) -> None:
    samples = case.task.prepare(case.unlabelled, case.processor, labelled=False)
    numbered = [{**sample, "row": row, "epoch": 0, "seed": 0} for row, sample in enumerate(samples)]
    assert all("labels" not in sample for sample in samples)
    rows = _predict(case, numbered)
    assert len(rows) == len(case.unlabelled)
    assert all({"prediction", "score"} <= set(row) for row in rows)
    json.dumps(rows, allow_nan=False)
    alone = [_predict(case, [sample])[0] for sample in numbered]
    for row, same in zip(rows, alone, strict=True):
        expected = same["prediction"]
        assert row["prediction"] == (pytest.approx(expected, rel=1e-4) if isinstance(expected, float) else expected)


CHECKS: tuple[Callable[[Case], None], ...] = tuple(
    value for name, value in list(globals().items()) if name.startswith("check_")
)


def _forward_inputs(case: Case, batch: Batch) -> dict[str, Any]:
    inputs = model_inputs(batch)
    if case.model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = case.model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    return inputs


def _loss_and_gradients(case: Case, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    case.model.zero_grad(set_to_none=True)
    loss = case.task.loss(case.model, batch)
    loss.backward()
    gradients = {
        name: parameter.grad.clone() for name, parameter in case.model.named_parameters() if parameter.grad is not None
    }
    case.model.zero_grad(set_to_none=True)
    return loss.detach(), gradients


def _assert_total(case: Case, whole: Batch, parts: list[Batch]) -> None:
    loss, gradients = _loss_and_gradients(case, whole)
    results = [_loss_and_gradients(case, part) for part in parts]
    torch.testing.assert_close(sum(part for part, _ in results), loss, **SUM)
    sums = {name: sum(part.get(name, torch.zeros(())) for _, part in results) for name in gradients}
    _assert_same_gradients(sums, gradients)
    assert sum(int(case.task.count(part)) for part in parts) == int(case.task.count(whole))


def _assert_same_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Equal up to the rounding of the whole gradient: single elements may be sums of large terms that cancel."""
    assert set(ours) == set(theirs)
    norm = torch.cat([gradient.flatten() for gradient in theirs.values()]).norm()
    difference = torch.cat([(ours[name] - theirs[name]).flatten() for name in theirs]).norm()
    assert difference <= 2e-5 * norm


def _assert_same_batch(ours: Batch, theirs: Batch) -> None:
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value) if isinstance(value, torch.Tensor) else ours[name] == value


def _with_more_padding(batch: Batch, *, filler: int) -> Batch:
    names = [name for name in ("input_ids", "token_type_ids", "attention_mask") if name in batch]
    padded = {**batch, **{name: torch.nn.functional.pad(batch[name], (0, 5)) for name in names}}
    if batch["labels"].shape == batch["input_ids"].shape and batch["labels"].dtype == torch.int64:
        padded["labels"] = torch.nn.functional.pad(batch["labels"], (0, 5), value=IGNORED)
    padded["input_ids"] = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, filler)
    return padded


def _records(case: Case, batches: list[Batch]) -> list[Any]:
    evaluator = case.task.evaluator()
    for batch in batches:
        evaluator.update(case.task.outputs(case.model, batch, case.processor), batch)
    return [evaluator.records[row] for row in sorted(evaluator.records)]


def _predict(case: Case, samples: list[Sample]) -> list[dict[str, Any]]:
    batch = case.collate(samples, train=False)
    return case.task.predictions(case.task.outputs(case.model, batch, case.processor), batch, case.processor)
