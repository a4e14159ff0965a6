"""Draws docs/run.svg: the terminal in which a run was started, as it looks when the run has ended.

    python benchmarks/picture.py ftscale train run.yaml ...

The command runs in a terminal of WIDTH columns; what it writes is kept by pyte (pip install pyte), and drawn by rich.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import sys
import termios
from itertools import groupby
from pathlib import Path

import pyte
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.style import Style
from rich.text import Text

PICTURE = Path(__file__).resolve().parents[1] / "docs/run.svg"
WIDTH, HEIGHT = 132, 48


def main() -> None:
    """Run the command, and write its picture."""
    command = sys.argv[1:]
    screen = pyte.Screen(WIDTH, HEIGHT)
    run(command, pyte.ByteStream(screen))
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(Text.assemble(("$ ", "bold green"), (" ".join(command), "bold")))
    for line in lines(screen):
        console.print(line, no_wrap=True, overflow="crop")
    PICTURE.write_text(console.export_svg(title="ftscale", code_format=without_fonts_of_others(CONSOLE_SVG_FORMAT)))


def run(command: list[str], stream: pyte.ByteStream) -> None:
    """Feed what the command writes to its terminal into the stream; raises SystemExit where it fails."""
    child, terminal = pty.fork()
    if not child:
        os.execvp(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    while written := read(terminal):
        stream.feed(written)
    if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit(f"{' '.join(command)} ended with {status}")


def read(terminal: int) -> bytes:
    """Return what stands in the terminal, b"" at its end."""
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that the other side has closed
        return b""


def lines(screen: pyte.Screen) -> list[Text]:
    """Return the screen's lines from the first to the last that is not blank."""
    drawn = []
    for row in range(screen.lines):
        text = Text()
        cells = (screen.buffer[row][column] for column in range(screen.columns))
        for (colour, bold), alike in groupby(cells, lambda cell: (cell.fg, cell.bold)):
            text.append("".join(cell.data for cell in alike), Style(color=named(colour), bold=bold))
        text.rstrip()
        drawn.append(text)
    while drawn and not drawn[-1].plain:
        drawn.pop()
    return drawn


def named(colour: str) -> str | None:
    """Return pyte's name of a colour, or its six hexadecimal digits, as rich calls it; None is the terminal's own."""
    if colour == "default":
        return None
    if colour in {"black", "red", "green", "blue", "magenta", "cyan", "white"}:
        return colour
    if colour == "brown":
        return "yellow"
    return colour.replace("bright", "bright_") if colour.startswith("bright") else f"#{colour}"


def without_fonts_of_others(template: str) -> str:
    """Return rich's template without its fonts, which a reader's browser would fetch from another's server."""
    before, _, rest = template.partition("    @font-face")
    return before + rest[rest.rindex("    }}\n\n    .{unique_id}-matrix") + len("    }}\n\n") :]


if __name__ == "__main__":
    main()
