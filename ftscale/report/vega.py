"""The libraries that draw Vega-Lite in a page, in one piece of JavaScript without a network; and pictures as PNG.

Both by vl-convert (https://github.com/vega/vl-convert), which has the libraries in it.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

from ftscale.base.files import own_id
from ftscale.base.sealed import write_text
from ftscale.report.charts import Spec

WIDTH = 800
SCALE = 2.0
"""Pixels of a PNG for each of the picture's, which is WIDTH of them wide."""


def libraries() -> str:
    """Vega, Vega-Lite and Vega-Embed. Putting them together takes seconds: they are kept in the user's cache."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ftscale"
    path = folder / f"vega-{version('vl-convert-python')}.js"
    try:
        if path.lstat().st_uid == own_id(folder) and not path.is_symlink():
            return path.read_text(encoding="utf-8")
    except OSError:
        pass
    import vl_convert

    text = vl_convert.javascript_bundle(snippet="window.vegaEmbed = vegaEmbed;")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError:  # a home that cannot be written: it is put together again the next time
        pass
    return text


def png_of(spec: Spec) -> bytes:
    """The picture on a white page."""
    import vl_convert

    sized = {**spec, "width": WIDTH, "background": "white"}
    return vl_convert.vegalite_to_png(sized, scale=SCALE)
