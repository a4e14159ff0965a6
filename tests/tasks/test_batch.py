"""A micro-batch: whose token is whose in both layouts, what goes to a device, and sums of terms."""

from __future__ import annotations

import pytest
import torch

from ftscale.modalities.collate import Layout, collate_tokens
from ftscale.tasks.batch import Batch, total_of

TOKENS = [{"input_ids": [5, 6, 7], "labels": [-100, 1, 2]}, {"input_ids": [8], "labels": [3]}]
TOKENS.append({"input_ids": [9, 4], "labels": [-100, -100]})


def batch(layout: Layout) -> Batch:
    inputs = collate_tokens(TOKENS, fill={"input_ids": 0, "labels": -100}, layout=layout)
    return Batch({name: value for name, value in inputs.items() if name != "labels"}, torch.arange(3), inputs["labels"])


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_each_sample_lies_where_its_span_says(layout: Layout):
    made = batch(layout)
    assert len(made) == len(made.spans) == 3
    for sample, (row, span) in zip(TOKENS, made.spans, strict=True):
        assert made.inputs["input_ids"][row, span].tolist() == sample["input_ids"]
        assert made.labels[row, span].tolist() == sample["labels"]


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_each_chosen_token_has_its_owner(layout: Layout):
    made = batch(layout)
    chosen = made.labels != -100
    assert made.labels[chosen].tolist() == [1, 2, 3]
    assert made.owners(chosen).tolist() == [0, 0, 1]
    every = torch.isin(made.inputs["input_ids"], torch.tensor([5, 6, 7, 8, 9, 4]))
    assert made.owners(every).tolist() == [0, 0, 0, 1, 2, 2]


def test_all_tensors_go_to_the_device_and_all_else_stays():
    inputs = {"input_ids": torch.ones(2, 3), "max_length_q": 3}
    extra = {"teacher": torch.ones(2, 4)}
    weights, labels = torch.ones(2), {"class": torch.ones(2)}
    made = Batch(inputs, torch.arange(2), labels, weights, extra, notes=["a", {"b": 1}], group="one")
    moved = made.to(torch.device("meta"))
    tensors = (moved.inputs["input_ids"], moved.rows, moved.labels["class"], moved.weights, moved.extra["teacher"])
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert (moved.inputs["max_length_q"], moved.notes, moved.group) == (3, ["a", {"b": 1}], "one")
    assert made.inputs["input_ids"].device.type == made.rows.device.type == "cpu"
    assert Batch({}, torch.arange(2)).to(torch.device("meta")).weights is None


def test_a_total_is_the_sum_of_the_terms_with_their_factors():
    first, second = torch.tensor(3.0, requires_grad=True), torch.tensor(5.0, requires_grad=True)
    total = total_of({"class": first, "box": second}, {"box": 4.0, "class": 0.5})
    total.backward()
    assert (total.item(), first.grad.item(), second.grad.item()) == (21.5, 0.5, 4.0)
    assert total_of({"loss": first}, {"loss": 2.0}).item() == 6.0


def test_each_sequence_of_a_row_is_told_from_the_others_also_where_the_row_stands_twice():
    """What chance is drawn by: no two sequences of a step may have the same."""
    one_each = batch("flat")
    assert one_each.sequence_rows() == (one_each.rows, None)
    made = Batch({}, torch.tensor([7, 4, 7]), sequences=[2, 3, 2], repeats=torch.tensor([0, 0, 1]))
    rows, which = made.sequence_rows()
    assert list(zip(rows.tolist(), which.tolist(), strict=True)) == [
        *((7, 0), (7, 1)),
        *((4, 0), (4, 1), (4, 2)),
        *((7, 2), (7, 3)),
    ]
    alone = Batch({}, torch.tensor([4]), sequences=[3]).sequence_rows()
    assert [part.tolist() for part in alone] == [[4, 4, 4], [0, 1, 2]]
