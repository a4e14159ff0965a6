"""What a terminal shows while a run trains: how far it is, how the loss goes, how fast, and the best evaluation."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ftscale.base.logs import log

if TYPE_CHECKING:
    from rich.console import Console

BARS = "▁▂▃▄▅▆▇█"
SHOWN_LOSSES = 32
"""Of the last steps, as bars."""


@dataclass(frozen=True)
class Now:
    """How a run stands after a step."""

    step: int
    loss: float
    rate: str
    """Tokens or images a second, with the word."""
    memory: str


Show = Callable[[Now], None]


def sparkline(values: Sequence[float]) -> str:
    """The values as bars between the lowest and the highest of them; a blank for one that is not finite."""
    finite = [value for value in values if value - value == 0]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] if value - value == 0 else " " for value in values)


@contextmanager
def display(*, total: int, done: int, best: Callable[[], str], enabled: bool) -> Iterator[Show]:
    """Show on stderr how a run goes, where somebody looks at a terminal; yields what takes each step.

    `best`: gives the best evaluation so far whenever the display is drawn, "" where there is none. Lines of the log go
    above it meanwhile.
    """
    if not (enabled and sys.stderr.isatty()):
        yield lambda now: None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.logging import RichHandler

    console = Console(stderr=True)
    shown = log.handlers[0]
    log.handlers[0] = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S")
    panel = Panel(total=total, done=done, best=best)
    try:
        with Live(panel, console=console, refresh_per_second=4):
            yield panel.take
    finally:
        log.handlers[0] = shown


@dataclass
class Panel:
    """A bar of the steps and a line of figures, as rich prints them."""

    total: int
    done: int
    best: Callable[[], str]
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=SHOWN_LOSSES))
    figures: str = ""
    bars: str = ""  # made where steps are taken: the display is drawn by another thread

    def __post_init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Left

        columns = (BarColumn(30), MofNCompleteColumn(), TextColumn("steps, elapsed"), TimeElapsedColumn())
        self.progress = Progress(*columns, TextColumn("left"), Left())
        self.bar = self.progress.add_task("training", total=self.total, completed=self.done)

    def take(self, now: Now) -> None:
        """Show how the run stands."""
        self.losses.append(now.loss)
        self.bars = sparkline(self.losses)
        self.progress.update(self.bar, completed=now.step)
        self.figures = "  ".join(part for part in (f"loss {now.loss:.4f}", now.rate, now.memory) if part)

    def __rich_console__(self, console: Console, options: Any) -> Iterator[Any]:
        from rich.text import Text

        yield self.progress
        if self.figures:
            best = self.best()
            yield Text.assemble((self.bars, "cyan"), "  ", self.figures, f"  best {best}" if best else "")
