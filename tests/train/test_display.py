"""What a terminal shows of a run, as rich prints it."""

from __future__ import annotations

import io

from rich.console import Console

from ftscale.train.display import Now, Panel, display, sparkline


def test_bars_go_from_the_lowest_to_the_highest():
    assert sparkline([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) == "▁▂▃▄▅▆▇█"
    assert sparkline([2.0, float("nan"), 1.0]) == "█ ▁"
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([]) == ""


def test_the_figures_of_the_last_step_stand_under_the_bar():
    best = iter(["", "accuracy 0.7500 (step 12)"])
    panel = Panel(total=40, done=10, best=lambda: next(best))
    for step, loss in ((11, 2.0), (12, 1.0)):
        panel.take(Now(step, loss, "900 tokens/s", "0.6 GiB"))
    assert "12/40" in drawn(panel)[0]
    # an evaluation between two steps, or after the last, shows at once
    assert drawn(panel)[1] == "█▁  loss 1.0000  900 tokens/s  0.6 GiB  best accuracy 0.7500 (step 12)"


def drawn(panel: Panel) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=100).print(panel)
    return file.getvalue().splitlines()


def test_nothing_is_shown_where_nobody_looks():
    with display(total=3, done=0, best=str, enabled=True) as show:
        show(Now(1, 1.0, "", ""))
