"""The blocks of README.md and docs/: what stands between fences, with its language and title."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`(ftscale [^`\n]+)`(?!`)")
END_OF_COMMAND = re.compile(r"\s(?:[|>]|2>|<|&&)\s?.*")


@dataclass(frozen=True)
class Block:
    """What stands between two fences of a page."""

    page: Path
    line: int
    language: str
    title: str
    """The name of the file that it is; "" = it has none."""
    text: str

    @property
    def place(self) -> str:
        """Page and line, for messages and the names of tests."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in some languages; of all where none is named."""
    content = page.read_text(encoding="utf-8")
    found = (
        Block(page, content.count("\n", 0, match.start()) + 1, *match.groups(default=""))
        for match in BLOCK.finditer(content)
    )
    return [block for block in found if not languages or block.language in languages]


def commands(page: Path) -> Iterator[tuple[str, list[str], bool]]:
    """Place, words behind `ftscale` and whether it is a whole command, of each command of a page.

    Those in the text may be parts, e.g. `ftscale check --full`.
    """
    for block in blocks(page, "bash", "console"):
        for number, line in enumerate(block.text.splitlines(), start=block.line + 1):
            words = shlex.split(END_OF_COMMAND.sub("", line.split("  #")[0]), comments=True)
            if "ftscale" in words and (words[0] == "ftscale" or words[words.index("ftscale") - 1] in ("-m", "srun")):
                yield f"{block.page.relative_to(ROOT)}:{number}", words[words.index("ftscale") + 1 :], True
    for match in INLINE.finditer(page.read_text(encoding="utf-8")):
        words = shlex.split(END_OF_COMMAND.sub("", match[1]))[1:]
        yield f"{page.relative_to(ROOT)}: {match[1]}", words, False
