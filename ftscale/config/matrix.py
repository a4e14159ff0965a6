"""The tables of combinations as Markdown; `python -m ftscale.config.matrix` writes docs/combinations.md.

That page has what trains under which strategy, and every row with reason, source and test. A README.md that has the
two marks gets the first of them too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ftscale.config.compatibility import TABLE, check_combination
from ftscale.config.schema import Config
from ftscale.config.strategies import STRATEGIES, Strategy

COLUMNS = sorted(STRATEGIES.values(), key=lambda strategy: (strategy.on_disk, strategy.offloads_optimizer))
"""Strategies as they are shown: first those that keep all on the devices, the disk last."""
LORA = {"adapter": {"method": "lora", "r": 8}}
VARIANTS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "LoRA": LORA,
    "LoRA on nf4": {**LORA, "model": {"name": "m", "quantization": "nf4"}},
    "LoRA on int8": {**LORA, "model": {"name": "m", "quantization": "int8"}},
    "AdaLoRA": {"adapter": {"method": "adalora"}},
    "random weights, LoRA": {**LORA, "model": {"name": "m", "init": "random"}},
    "SGD, Lion, AdEMAMix": {"optimizer": {"name": "lion"}},
    "8-bit optimizers": {"optimizer": {"name": "adamw_8bit"}},
    "Adafactor": {"optimizer": {"name": "adafactor"}},
    "activation checkpointing": {"train": {"activation_checkpointing": True}},
}
PAGE = """# Combinations

Written by `python -m ftscale.config.matrix` from ftscale/config/compatibility.py. "no": `check` and `train` refuse it,
with the sentence below; "yes": a test trains it; "untried": nothing is known.

## What trains under which strategy

{matrix}

## Every row, with its reason

{table}
"""
START, END = "<!-- combinations: python -m ftscale.config.matrix -->", "<!-- end of combinations -->"


def matrix() -> str:
    """Variants by strategies: yes (a test runs it), no (refused), or untried."""
    heads = [f"`{strategy.name}`" for strategy in COLUMNS]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, sections in VARIANTS.items():
        cells = [_cell(sections, strategy) for strategy in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table() -> str:
    """Return a Markdown table of every combination, with what is known of it and the tests that show it."""
    lines = ["| combination | verdict | what is known | source | shown by |", "|---|---|---|---|---|"]
    for row in TABLE:
        cells = [row.name, row.verdict, row.text, row.source, ", ".join(_shown(test) for test in row.tests)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def with_matrix(readme: str) -> str:
    """A README's text with the matrix between its two marks; as it is where it has none."""
    if START not in readme:
        return readme
    head, rest = readme.split(START)
    return f"{head}{START}\n\n{matrix()}\n\n{END}{rest.split(END)[1]}"


def combinations_page() -> str:
    """Return the text of docs/combinations.md."""
    return PAGE.format(matrix=matrix(), table=table())


def main() -> None:
    """Write the page, and the README's table where it has one, in the checkout that this file stands in."""
    root = Path(__file__).resolve().parents[2]
    readme = root / "README.md"
    readme.write_text(with_matrix(readme.read_text(encoding="utf-8")), encoding="utf-8")
    (root / "docs/combinations.md").write_text(combinations_page(), encoding="utf-8")


def _cell(sections: dict[str, Any], strategy: Strategy) -> str:
    plain = {"task": "text_classification", "run_folder": "r", "model": {"name": "m"}, "data": {"train": "t"}}
    distributed = {"strategy": strategy.name, "offload_dir": "/scratch"}
    config = Config.model_validate({**plain, **sections, "distributed": distributed})
    if check_combination(config):
        return "no"
    works = (row for row in TABLE if row.verdict == "works" and row.when(config, strategy))
    # a row that holds whatever the strategy says nothing of this one
    return "yes" if strategy.one_process or any(not row.when(config, None) for row in works) else "untried"


def _shown(test: str) -> str:
    return f"<{test}>" if test.startswith("https://") else f"`{test.split('::')[1]}`"


if __name__ == "__main__":
    main()
