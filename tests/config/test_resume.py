"""The table of what may change at a resume is that of the schema."""

from __future__ import annotations

import tiny

from ftscale.config import Config
from ftscale.config.resume import FREE_TO_CHANGE, LENGTH, SCHEDULED, resume_table


def test_the_page_has_the_table_that_is_printed():
    printed = tiny.command("schema", "--resume").stdout
    assert printed.strip() == resume_table().strip()
    assert resume_table() in (tiny.ROOT / "docs/reliability.md").read_text()


def test_every_name_is_a_setting():
    for name in (*FREE_TO_CHANGE, *SCHEDULED, *LENGTH):
        section, _, setting = name.partition(".")
        assert section in Config.model_fields
        kind = Config.model_fields[section].annotation
        assert setting in ("", "file") or setting in getattr(kind, "model_fields", {}), name


def test_each_setting_stands_in_one_column():
    [batch] = [line for line in resume_table().splitlines() if line.startswith("| `batch`")]
    assert batch == "| `batch` | `micro_tokens`, `micro_size`, `layout` |  | `global_size`, `unit` |"
    [schedule] = [line for line in resume_table().splitlines() if line.startswith("| `schedule`")]
    assert schedule == "| `schedule` |  | all of it |  |"
