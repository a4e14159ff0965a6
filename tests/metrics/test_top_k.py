"""Top-k accuracy."""

from __future__ import annotations

from ftscale.metrics.top_k import TopKAccuracy


def test_a_row_is_right_when_its_class_is_among_the_k_best():
    metric = TopKAccuracy(2)
    metric.add_batch(predictions=[[3, 1, 0], [0, 2, 1]], references=[1, 1])
    assert metric.compute() == {"top2_accuracy": 0.5}
