"""ftscale's page on a package index: README.md without its links to files of the repository, which lead nowhere there.

hatchling calls this when it builds (pyproject.toml, tool.hatch.metadata.hooks.custom).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

IN_REPOSITORY = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?![a-z]+:|#)[^)]*\)")


class Description(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": description(readme)}


def description(readme: str) -> str:
    """The text of such a link stays; a picture goes."""
    return IN_REPOSITORY.sub(lambda found: "" if found["image"] else found["text"], readme)
