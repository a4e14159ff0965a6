"""What the site needs besides the pages: files of the repository that a page links to, copied into the site as text.

On GitHub a link such as ../launch/recipes/sst2.yaml leads to the file itself. The site has no such place, and must not
depend on a host where the repository might be.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)")
"""The target of a link of Markdown that begins with the folder above."""


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Lead links out of docs/ to copies of the files, which are added to the site here.

    A link to a file that is not there stays as it is, and --strict tells of it.
    """
    here = posixpath.dirname(page.file.src_uri)

    def to_copy(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", here, link[1]))
        source = ROOT / target
        if target.startswith("docs/") or not source.is_file():
            return link[0]
        copy = f"files/{target}.txt"  # as text: a browser shows it, and a .md is no page of the site
        if files.get_file_from_path(copy) is None:
            files.append(File.generated(config, copy, abs_src_path=str(source)))
        return f"]({posixpath.relpath(copy, here or '.')}"

    return LINK.sub(to_copy, markdown)
