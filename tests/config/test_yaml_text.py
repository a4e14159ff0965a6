"""YAML is data: no tag of a file runs code or builds an object."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftscale.config.yaml_text import read_yaml
from ftscale.errors import UserError


@pytest.mark.parametrize(
    "value",
    ["!!python/object/apply:os.mkdir [{made}]", "!!python/object/new:os.mkdir [{made}]", "!!python/name:os.mkdir"],
    ids=["apply", "new", "name"],
)
def test_a_python_tag_is_refused_with_its_line_and_not_run(tmp_path: Path, value: str):
    text = f"task: causal_lm\nseed: {value.format(made=tmp_path / 'ran')}\n"
    with pytest.raises(UserError, match=r"^run.yaml, line 2, column 7: not valid YAML: .*python/"):
        read_yaml(text, source="run.yaml")
    assert not (tmp_path / "ran").exists()
