"""A file of another tool, translated: the configuration of ours, its text, and what is said of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ftscale.config import Config
from ftscale.config.load import load_config
from ftscale.config.yaml_text import read_yaml
from ftscale.init.translate import Translation, translate_file
from ftscale.init.written import write_file


@dataclass(frozen=True)
class Translated:
    """What came of it."""

    config: Config
    found: Translation

    @property
    def said(self) -> str:
        """Return all that is told beside the settings."""
        return "\n".join([*self.found.open, *self.found.lacks, *self.found.unknown])

    def line(self, setting: str) -> str:
        """Return the line of run.yaml, or the two, in which a setting stands, by its last name."""
        lines = self.found.text.splitlines()
        [place] = [number for number, line in enumerate(lines) if line.strip().startswith(f"{setting}:")]
        above = lines[place - 1].strip()
        return f"{above} {lines[place].strip()}" if above.startswith("#") else lines[place].strip()


def translated(folder: Path, text: str, *, name: str = "theirs.yaml", **options: object) -> Translated:
    """Translate a file that holds this text, write it, and read it back as a run would.

    Whatever is translated, each key of a file that a person would write stands in the configuration, in its line, in a
    sentence, or among those that ask for nothing more.
    """
    (folder / name).write_text(text)
    found = translate_file(folder / name, **options)  # type: ignore[arg-type]
    words = set(re.findall(r"[\w./-]+", found.text))
    values = read_yaml(text, source=name)
    silent = [key for key, value in values.items() if value and re.fullmatch(r"\w+", str(key)) and key not in words]
    assert name.endswith(".json") or not silent
    write_file(found.text, folder / "run.yaml", overwrite=True)
    return Translated(load_config(folder / "run.yaml"), found)
