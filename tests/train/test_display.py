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
    panel = Panel(total=40, done=10)
    for step, loss in ((11, 2.0), (12, 1.0)):
        panel.take(Now(step, loss, "900 tokens/s", "0.6 GiB", "accuracy 0.7500 (step 10)"))
    console = Console(file=io.StringIO(), width=100)
    console.print(panel)
    bar, figures = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "12/40" in bar
    assert figures == "█▁  loss 1.0000  900 tokens/s  0.6 GiB  best accuracy 0.7500 (step 10)"


def test_nothing_is_shown_where_nobody_looks():
    with display(total=3, done=0, enabled=True) as show:
        show(Now(1, 1.0, "", "", ""))
