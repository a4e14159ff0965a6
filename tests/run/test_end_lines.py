"""What a run says at its end."""

from __future__ import annotations

from pathlib import Path

from ftscale.run.final_model import end_lines
from ftscale.run.folder import Result


def test_the_end_tells_the_best_evaluation_the_test_scores_and_what_to_do_next():
    scores = {"loss": 0.4, "test/loss": 0.5, "test/accuracy": 0.75, "test/f1_micro": 0.75, "test/f1/spam": 0.1}
    best = {"step": 80, "metric": "accuracy", "value": 0.8125}
    intervals = {"test/accuracy": (0.7, 0.8)}
    lines = end_lines(Result("completed", 120, scores, best, 4000.0, "runs/a/model", intervals), Path("runs/a b"))
    assert lines[0].startswith("completed after 120 steps in 1h06m")
    assert lines[0].endswith(" GiB at most")
    assert lines[1:] == [
        "  best evaluation  step 80: accuracy 0.8125",
        "  test             loss 0.5000",
        "  test             accuracy 0.7500  (95 of 100 such samples: 0.7000 to 0.8000)",
        "  model            runs/a/model",
        "  to use it        ftscale predict 'runs/a b' INPUT",
    ]
