"""What every task promises (ftscale/tasks/base.py), as checks that any task's case goes through."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ftscale.data.loader import Step
from ftscale.data.sample import Sample
from ftscale.modalities.collate import IGNORED, Layout
from ftscale.models.layout import choose_layout
from ftscale.run.predict import samples_by_row
from ftscale.tasks.base import Task
from ftscale.tasks.batch import Batch, Terms
from ftscale.tasks.capabilities import CAPABILITIES
from ftscale.tasks.context import Context

SUM = {"rtol": 2e-5, "atol": 1e-6}  # float32 sums in another order

Gradients = dict[str, dict[str, torch.Tensor]]
"""By term of the loss and by weight."""


@dataclass
class Case:
    """A task with real rows of uneven length, a real processor and a tiny model, in eval mode."""

    task: Task
    """Bound to its processor."""
    rows: list[dict[str, Any]]
    model: torch.nn.Module
    unlabelled: list[dict[str, Any]]
    flat: bool = False
    """The model takes flat rows."""
    computed: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """The columns that the task computes, and the shape of a sample's value."""

    def samples(self) -> list[Sample]:
        """Numbered as the loader does it."""
        return numbered(self.task.prepare(self.rows))

    def collate(self, samples: list[Sample], *, layout: Layout = "padded", train: bool = True) -> Batch:
        batch = self.task.collate(samples, layout=layout, train=train)
        for name, shape in self.computed.items():
            batch.extra[name] = torch.stack([torch.full(shape, float(sample.number)) for sample in samples])
        return batch

    def is_token_level(self) -> bool:
        """Whether each token with a label is a target."""
        batch = self.collate(self.samples())
        labels = batch.labels
        return labels.ndim == 2 and self.task.count(batch)[_first_term(self)] == int((labels != IGNORED).sum())

    def as_a_step(self, batches: list[Batch]) -> list[Batch]:
        """Micro-batches of one optimizer step of one process, as the loop has them before the loss."""
        process = SimpleNamespace(device=torch.device("cpu"), rank=0, world_size=1, gather_rows=lambda rows: [rows])
        step = Step([(batch, True) for batch in batches], None, tokens=0)
        step = self.task.before_step(step, Context(_Runs(self.model), process, 1))
        return [batch for batch, _ in step.micro_batches]

    def in_layout(self, layout: Layout) -> Case:
        """The same case with a model that is ready for batches of this layout; skips where it takes none."""
        if layout == "padded":
            return self
        if not self.flat:
            pytest.skip("the model takes padded rows only")
        flat, pooled = copy.deepcopy(self), self.task.pools
        found = choose_layout(flat.model, wanted="flat", attention="auto", pooled=pooled, encoder_decoder=False)
        assert found == "flat"
        return flat


class _Runs(torch.nn.Module):
    """A model as the loop wraps it, for what is done before a step."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *, run: Callable[[torch.nn.Module], Any], batch: Batch) -> Any:
        return run(self.model)


def numbered(samples: list[Sample]) -> list[Sample]:
    return [replace(sample, number=number) for number, sample in enumerate(samples)]


def check_sample_says_its_cost_and_targets(case: Case) -> None:
    samples = case.samples()
    assert not any(sample.drop for sample in samples)
    assert len({sample.cost for sample in samples}) > 1 or not case.task.modality.in_tokens
    for sample in samples:
        assert isinstance(sample.cost, int)
        counts = case.task.count(case.collate([sample]))
        assert sample.counts in (counts, None)  # None: known in the batch only
        assert set(counts) == set(case.task.terms)
        assert all(count > 0 for count in counts.values())


def check_prepare_is_deterministic(case: Case) -> None:
    samples = case.task.prepare(case.rows)
    assert case.task.prepare(case.rows) == samples
    rest = [replace(sample, rows=_later(sample.rows, 2)) for sample in case.task.prepare(case.rows[2:])]
    assert case.task.prepare(case.rows[:2]) + rest == samples
    travelled = pickle.loads(pickle.dumps(case.task))  # as to the worker processes that tokenise
    assert travelled.prepare(case.rows) == samples


def check_samples_survive_arrow(case: Case) -> None:
    """Prepared data lies in Arrow files: what comes back must collate to the same batch."""
    from datasets import Dataset

    samples = case.samples()
    stored = Dataset.from_list([sample.stored() for sample in samples])
    again = [Sample.of_stored(columns, number=number) for number, columns in enumerate(stored)]
    for train in (False, True):
        _assert_same_batch(case.collate(again, train=train), case.collate(samples, train=train))


def check_batch_feeds_the_model(case: Case) -> None:
    samples = case.samples()
    batch = case.collate(samples)
    assert len(batch) == len(samples)
    assert batch.rows.tolist() == list(range(len(samples)))
    assert batch.rows.dtype == torch.int64
    case.model(**_forward_inputs(case, batch))
    terms, gradients = _terms_and_gradients(case, batch)
    counts = case.task.count(batch)
    assert set(terms) == set(counts) == set(case.task.terms)
    for name, loss in terms.items():
        assert loss.dtype == torch.float32
        assert loss.shape == ()
        assert loss.isfinite()
        assert loss > 0
        assert type(counts[name]) in (int, float)
        assert any(gradient.abs().max() > 0 for gradient in gradients[name].values())


def check_each_term_adds_up_by_itself(case: Case) -> None:
    """Each sample alone, without padding, against all in one batch: loss, gradient and count of every term."""
    samples = case.samples()
    whole = case.collate(samples)
    parts = [case.collate([sample]) for sample in samples]
    _assert_total(case, whole, parts)


def check_a_batch_cut_in_two_gives_the_same_total(case: Case) -> None:
    samples = sorted(case.samples(), key=lambda sample: -sample.cost)
    _assert_total(case, case.collate(samples), [case.collate(samples[:1]), case.collate(samples[1:])])


def check_padding_does_not_change_the_loss(case: Case) -> None:
    """More padding, filled with arbitrary tokens."""
    batch = case.collate(case.samples())
    if "attention_mask" not in batch.inputs:
        pytest.skip("an image has no padding")
    padded = _with_more_padding(batch, filler=17)
    _assert_same_loss(_terms_and_gradients(case, padded), _terms_and_gradients(case, batch))
    assert case.task.count(padded) == case.task.count(batch)


def check_flat_equals_padded(case: Case) -> None:
    samples = case.samples()
    flat = case.in_layout("flat")
    padded = _terms_and_gradients(case, case.collate(samples))
    scores = _scores(case, case.collate(samples, train=False))
    batch = flat.collate(samples, layout="flat")
    total = sum(len(sample.inputs["input_ids"]) for sample in samples)
    assert batch.inputs["input_ids"].shape in ((1, total), (1, 1, total))  # the latter of a model that takes choices
    _assert_same_loss(_terms_and_gradients(flat, batch), padded)
    assert flat.task.count(batch) == _sums([case.task.count(case.collate([sample])) for sample in samples])
    assert _scores(flat, flat.collate(samples, layout="flat", train=False)) == pytest.approx(scores, rel=1e-4)


def check_a_weight_of_two_is_the_sample_twice(case: Case) -> None:
    _assert_weights(case, [2.0, 1.0, 1.0], places=[0, 0, 1, 2])


def check_a_weight_of_zero_is_the_sample_absent(case: Case) -> None:
    _assert_weights(case, [1.0, 0.0, 1.0], places=[0, 2])


def check_a_weight_of_two_is_the_sample_twice_in_a_flat_row(case: Case) -> None:
    _assert_weights(case, [1.0, 1.0, 2.0], places=[0, 1, 2, 2], layout="flat")


def check_a_weight_of_zero_is_the_sample_absent_in_a_flat_row(case: Case) -> None:
    _assert_weights(case, [0.0, 1.0, 1.0], places=[1, 2], layout="flat")


def check_what_is_in_extra_never_reaches_the_model(case: Case) -> None:
    """Nor do labels, weights, rows and notes: the model, and those beside it, are called with the inputs alone."""
    samples = case.samples()
    for train in (True, False):
        batch = case.collate(samples, train=train)
        laden = replace(
            batch,
            weights=torch.ones(len(batch)),
            extra={**batch.extra, "another": torch.rand(len(batch), 3)},
            group="another",
        )
        theirs, ours = _calls(case, batch, train=train), _calls(case, laden, train=train)
        assert ours
        assert {frozenset(call) for call in ours} == {frozenset(call) for call in theirs}
        assert set(ours[0]) == set(_forward_inputs(case, batch))
        assert all(torch.equal(ours[0][name], value) for name, value in batch.inputs.items())
    _assert_same_loss(_terms_and_gradients(case, laden), _terms_and_gradients(case, batch))


def check_labels_outside_the_count_get_no_gradient(case: Case) -> None:
    """With all labels of a sample taken away, loss, gradient and count are those of the other samples."""
    if not case.is_token_level():
        pytest.skip("each row is a target")
    samples = case.samples()
    batch = case.collate(samples)
    batch.labels[0] = IGNORED
    _assert_total(case, batch, [case.collate(samples[1:])])
    batch.labels[:] = IGNORED
    terms, gradients = _terms_and_gradients(case, batch)
    for name, loss in terms.items():
        assert loss == 0
        assert case.task.count(batch)[name] == 0
        assert all(gradient.abs().max() == 0 for gradient in gradients[name].values())


def check_outputs_hold_the_loss(case: Case) -> None:
    batch = case.collate(case.samples(), train=False)
    outputs, terms = case.task.outputs(case.model, batch), case.task.loss(case.model, batch)
    torch.testing.assert_close(_loss_in(outputs), terms[_first_term(case)].detach(), **SUM)
    assert not any(value.requires_grad for value in outputs.values() if isinstance(value, torch.Tensor))


def check_scores_do_not_depend_on_batches(case: Case) -> None:
    """One batch, or rows in another order and some twice: the same scores, and the loss is a mean over targets."""
    samples = case.samples()
    whole = case.task.evaluator()
    batch = case.collate(samples, train=False)
    outputs = case.task.outputs(case.model, batch)
    whole.update(outputs, batch)
    parts, other_rank = case.task.evaluator(), case.task.evaluator()
    for evaluator, group in ((parts, samples[2:]), (other_rank, samples[1::-1]), (other_rank, samples[-1:])):
        batch = case.collate(list(group), train=False)
        evaluator.update(case.task.outputs(case.model, batch), batch)
    parts.merge(pickle.loads(pickle.dumps(other_rank.records)))
    scores = whole.compute()
    assert parts.compute() == pytest.approx(scores, rel=1e-4)
    total = case.task.count(case.collate(samples, train=False))[_first_term(case)]
    assert scores["loss"] == pytest.approx(_loss_in(outputs).item() / total, rel=1e-5)
    assert case.task.best_metric in scores
    assert set(scores) <= set(case.task.metric_names())
    json.dumps(scores)
    assert all(type(value) is float for value in scores.values())


def check_predictions_are_one_a_row(case: Case) -> None:
    samples = numbered(case.task.prepare(case.unlabelled, labelled=False))
    assert all(sample.label is None for sample in samples)
    predicted = _predict(case, samples)
    of_rows = [[predicted[place] for place in places] for places in samples_by_row(samples, len(case.unlabelled))]
    assert sum(map(len, of_rows)) == len(samples)
    rows = [case.task.merge(answers) for answers in of_rows]
    assert all(list(row) == case.task.answer_names(every=False) for row in rows)
    assert all({"prediction", "score"} <= set(row) for row in rows)
    json.dumps(rows, allow_nan=False)
    alone = [_predict(case, [sample])[0] for sample in samples]
    for row, same in zip(predicted, alone, strict=True):
        expected = same["prediction"]
        numbers = isinstance(expected, float) or (isinstance(expected, list) and isinstance(expected[0], float))
        assert row["prediction"] == (pytest.approx(expected, rel=1e-4, abs=1e-6) if numbers else expected)
        assert case.task.merge([row]) == row


def check_it_has_what_its_settings_say_it_can(case: Case) -> None:
    can = case.task.settings.can
    for name, kind in CAPABILITIES.items():
        [method] = [member for member in vars(kind) if not member.startswith("_")]
        assert (name in can) == hasattr(case.task, method), name


def check_a_samples_embedding_is_the_same_in_any_batch(case: Case) -> None:
    """Alone, padded beside others, and flat, where the model reads all tokens below its head."""
    if "embeds" not in case.task.settings.can:
        pytest.skip("it does not embed")
    samples = case.samples()
    alone = torch.cat([case.task.embed(case.model, case.collate([sample])) for sample in samples])
    together = case.task.embed(case.model, case.collate(samples))
    assert together.shape == (len(samples), alone.shape[1])
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, alone, **SUM)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)
    together.sum().backward()
    assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in case.model.parameters())
    case.model.zero_grad(set_to_none=True)
    if case.flat:
        flat, pooled = copy.deepcopy(case), case.task.pools
        choose_layout(
            flat.model, wanted="flat", attention="auto", pooled=pooled, encoder_decoder=False, every_token=True
        )
        torch.testing.assert_close(flat.task.embed(flat.model, flat.collate(samples, layout="flat")), alone, **SUM)


def check_scores_of_sequences_are_those_of_the_models_own_logits(case: Case) -> None:
    """Padded and flat: sums of log-probabilities, logits chunk by chunk, and a gradient of each sample's sum."""
    if "scores_sequences" not in case.task.settings.can:
        pytest.skip("it writes nothing")
    samples = case.samples()
    batch = case.collate(samples)
    logits = case.model(**_forward_inputs(case, batch)).logits.float()
    chosen = batch.labels != IGNORED
    targets = batch.labels[chosen]
    each = torch.zeros(batch.labels.shape).masked_scatter(
        chosen, logits.log_softmax(dim=-1)[chosen].gather(1, targets[:, None])
    )
    factors = torch.arange(1.0, len(samples) + 1)
    expected = _gradients_of(case, (each.sum(dim=1) * factors).sum())
    layouts = [(case, batch)]
    if case.flat:
        flat = case.in_layout("flat")
        layouts.append((flat, flat.collate(samples, layout="flat")))
    for one, its in layouts:
        sums, counts = one.task.log_probs(one.model, its)
        torch.testing.assert_close(sums, each.sum(dim=1), **SUM)
        assert counts.tolist() == chosen.sum(dim=1).tolist()
        torch.testing.assert_close(_gradients_of(one, (sums * factors).sum()), expected, rtol=1e-3, atol=1e-5)
        chunks, seen = list(one.task.target_logits(one.model, its)), 0
        for values, places in chunks:
            assert places == slice(seen, seen := seen + len(values))
            assert values.requires_grad
        assert seen == len(targets)
        torch.testing.assert_close(torch.cat([values for values, _ in chunks]), logits[chosen], **SUM)


CHECKS: tuple[Callable[[Case], None], ...] = tuple(
    value for name, value in list(globals().items()) if name.startswith("check_")
)


def _forward_inputs(case: Case, batch: Batch) -> dict[str, Any]:
    inputs = dict(batch.inputs)
    if case.model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = case.model.prepare_decoder_input_ids_from_labels(labels=batch.labels)
    return inputs


def _terms_and_gradients(case: Case, batch: Batch) -> tuple[Terms, Gradients]:
    """Each term of the loss, and the gradient that it alone gives."""
    terms, gradients = {}, {}
    for name in case.task.terms:
        case.model.zero_grad(set_to_none=True)
        loss = case.task.loss(case.model, batch)[name]
        loss.backward()
        weights = case.model.named_parameters()
        gradients[name] = {place: weight.grad.clone() for place, weight in weights if weight.grad is not None}
        terms[name] = loss.detach()
    case.model.zero_grad(set_to_none=True)
    return terms, gradients


def _gradients_of(case: Case, value: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = dict(case.model.named_parameters())
    gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    return {name: value for name, value in zip(weights, gradients, strict=True) if value is not None}


def _first_term(case: Case) -> str:
    return next(iter(case.task.terms))


def _loss_in(outputs: dict[str, Any]) -> torch.Tensor:
    """The sum that an evaluator makes of each sample's loss."""
    return torch.as_tensor(outputs["losses"], dtype=torch.float32).sum()


def _sums(counts: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(one[name] for one in counts) for name in counts[0]}


def _assert_total(case: Case, whole: Batch, parts: list[Batch]) -> None:
    results = [_terms_and_gradients(case, part) for part in case.as_a_step(parts)]
    terms, gradients = _terms_and_gradients(case, whole)
    sums = {name: sum(of_part[name] for of_part, _ in results) for name in terms}
    sums_of_gradients = {
        name: {
            place: sum(of_part[name].get(place, torch.zeros(())) for _, of_part in results) for place in gradients[name]
        }
        for name in terms
    }
    _assert_same_loss((sums, sums_of_gradients), (terms, gradients))
    assert _sums([case.task.count(part) for part in parts]) == case.task.count(whole)


def _assert_weights(case: Case, weights: list[float], *, places: list[int], layout: Layout = "padded") -> None:
    """The first samples with these weights give what the samples in these places give: every term and its gradient."""
    case = case.in_layout(layout)
    samples = case.samples()[: len(weights)]
    batch = case.collate(samples, layout=layout)
    weighted = _terms_and_gradients(case, replace(batch, weights=torch.tensor(weights)))
    _assert_same_loss(weighted, _terms_and_gradients(case, case.collate([samples[at] for at in places], layout=layout)))
    plain = _terms_and_gradients(case, batch)
    _assert_same_loss(_terms_and_gradients(case, replace(batch, weights=torch.ones(len(weights)))), plain)
    assert all(weighted[0][name] != plain[0][name] for name in case.task.terms)
    assert case.task.count(replace(batch, weights=torch.tensor(weights))) == case.task.count(batch)


def _assert_same_loss(ours: tuple[Terms, Gradients], theirs: tuple[Terms, Gradients]) -> None:
    """Gradients are equal up to the rounding of the whole: single elements may be sums of large terms that cancel."""
    assert set(ours[0]) == set(theirs[0])
    for name, expected in theirs[0].items():
        torch.testing.assert_close(ours[0][name], expected, **SUM)
        own, other = ours[1][name], theirs[1][name]
        assert set(own) == set(other)
        norm = torch.cat([gradient.flatten() for gradient in other.values()]).norm()
        difference = torch.cat([(own[place] - other[place]).flatten() for place in other]).norm()
        assert difference <= 2e-5 * norm


def _assert_same_batch(ours: Batch, theirs: Batch) -> None:
    assert set(ours.inputs) == set(theirs.inputs)
    for name, value in theirs.inputs.items():
        assert torch.equal(ours.inputs[name], value) if isinstance(value, torch.Tensor) else ours.inputs[name] == value
    assert torch.equal(ours.rows, theirs.rows)
    assert torch.equal(ours.labels, theirs.labels)
    assert ours.notes == theirs.notes
    assert (ours.weights, ours.group) == (theirs.weights, theirs.group) == (None, "")
    assert set(ours.extra) == set(theirs.extra)
    assert all(torch.equal(ours.extra[name], value) for name, value in theirs.extra.items())


def _with_more_padding(batch: Batch, *, filler: int) -> Batch:
    inputs, labels = dict(batch.inputs), batch.labels
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        if name in inputs:
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, 5))
    if labels.shape == batch.inputs["input_ids"].shape and labels.dtype == torch.int64:
        labels = torch.nn.functional.pad(labels, (0, 5), value=IGNORED)
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, filler)
    return replace(batch, inputs=inputs, labels=labels)


def _calls(case: Case, batch: Batch, *, train: bool) -> list[dict[str, Any]]:
    """What the forward of the model, and of its companions, is given in each call for the loss, or for the outputs."""
    calls: list[dict[str, Any]] = []

    def note(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert not args
        calls.append(dict(kwargs))

    watched = [case.model, *(companion.module for companion in case.task.companions())]
    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in watched]
    try:
        (case.task.loss if train else case.task.outputs)(case.model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _scores(case: Case, batch: Batch) -> dict[str, float]:
    evaluator = case.task.evaluator()
    evaluator.update(case.task.outputs(case.model, batch), batch)
    return evaluator.compute()


def _later(rows: tuple[int, int] | None, by: int) -> tuple[int, int] | None:
    return None if rows is None else (rows[0] + by, rows[1] + by)


def _predict(case: Case, samples: list[Sample]) -> list[dict[str, Any]]:
    batch = case.collate(samples, train=False)
    return case.task.predictions(case.task.outputs(case.model, batch), batch)
