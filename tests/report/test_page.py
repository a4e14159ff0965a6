"""Pages as a browser opens them: in a real Chromium, at two widths, light and dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import needs
import pytest
import tiny
from report.made import write_folder

from ftscale.report.facts import read_run
from ftscale.report.page import html_of, page_of_run, page_of_runs

PATIENCE_MS = 1000.0 * tiny.PATIENCE_S
PLANTED = "</script><script>window.struck = 1</script><img src=x onerror='window.struck = 1'></table>{{ 7 * 7 }}"

CONTRAST = """() => {
  const light = (channel) => channel <= 0.03928 ? channel / 12.92 : ((channel + 0.055) / 1.055) ** 2.4;
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => {
    const [red, green, blue] = numbers(color).map((value) => light(value / 255));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = (element) => {
    for (let place = element; place; place = place.parentElement) {
      const color = getComputedStyle(place).backgroundColor, parts = numbers(color);
      if (parts.length < 4 || parts[3] > 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const faint = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.getClientRects().length || ["SCRIPT", "STYLE", "OPTION"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const inner = element instanceof SVGElement;
    if (inner && element.closest(".mark-text")) continue;  // numbers upon squares, which have colours of their own
    const ink = inner ? style.fill : style.color, page = behind(element.closest("svg")?.parentElement ?? element);
    const [one, other] = [luminance(ink), luminance(page)].sort();
    const ratio = (other + 0.05) / (one + 0.05);
    if (ratio < 4.5) faint.push(`${element.tagName} ${element.textContent.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return faint;
}"""
"""Texts whose contrast with what is behind them is less than 4.5 (WCAG 2.2, 1.4.3)."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        needs.missing("needs a Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]  # a container may have little shared memory
        found = playwright.chromium.launch(executable_path=program, args=options, timeout=PATIENCE_MS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a text that would be a script wherever a text stands."""
    number = 40
    records = {
        "label": [PLANTED, "good"] * (number // 2),
        "prediction": ["good", "good", PLANTED, PLANTED] * (number // 4),
        "score": [0.9] * number,
        "loss": [float(place) for place in range(number)],
        "input": [PLANTED] * number,
        "where": [f"{PLANTED}.csv:{place}" for place in range(number)],
    }
    part = {
        "sources": [
            {"path": PLANTED, "read": 9, "kept": 8, "truncated": 1, "dropped": {PLANTED: 1}, "total_length": 80}
        ],
        "samples": 8,
        "in_tokens": True,
        "lengths": {"edges": [1.0, 5.0, 9.0], "counts": [3, 5]},
        "classes": {PLANTED: 5, "good": 3},
        "equal_inputs": 1,
        "contradicting": 0,
        "unknown_tokens": 0.25,
    }
    folder = write_folder(
        tmp_path_factory.mktemp("planted") / "run",
        [2.0 - 0.01 * step for step in range(120)],
        {60: {"loss": 1.5, "accuracy": 0.5}, 120: {"loss": 1.9, "accuracy": 0.6}},
        records=records,
        result={"best": {"step": 120, "metric": "accuracy", "value": 0.6}, "metrics": {"accuracy": 0.6}},
        data={"parts": {"train": part, "eval": part}, "shown": [[[PLANTED, False], [PLANTED, True]]]},
        events=[{"event": "failed", "step": 3, "error": PLANTED}],
        model=PLANTED.replace("/", "-"),
        report={"tags": [PLANTED]},
    )
    path = folder / "report.html"
    path.write_text(html_of(page_of_run(read_run(folder, name=PLANTED))), encoding="utf-8")
    return path


class Opened:
    """A page in a browser, and what came of it."""

    def __init__(self, browser: Any, path: Path, *, width: int = 1400, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.set_default_timeout(PATIENCE_MS)
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.page.on(
            "console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text)
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        charts = self.page.locator("[data-chart]").count()
        self.page.wait_for_function(
            "(number) => document.querySelectorAll('[data-chart] svg').length === number", arg=charts
        )


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (1400, "dark"), (480, "light"), (480, "dark")])
def test_a_page_is_whole_at_any_width_and_what_stands_in_data_is_text(
    browser: Any, planted: Path, width: int, scheme: str
):
    opened = Opened(browser, planted, width=width, scheme=scheme)
    page = opened.page
    assert opened.errors == []
    assert opened.asked == [planted.as_uri()]
    assert page.evaluate("window.struck") is None
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate(CONTRAST) == []
    assert PLANTED in page.inner_text("h1")
    assert page.locator("mark").first.inner_text() == PLANTED
    assert "49" not in page.inner_text("h1")
    page.close()


def test_a_page_works_by_keyboard(browser: Any, planted: Path):
    page = Opened(browser, planted).page
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.tagName + ' ' + (document.activeElement.className || '')").strip()
        )
    assert {"A", "SELECT", "DIV scroll"} <= reached
    page.focus("#axis")
    title = "() => [...document.querySelectorAll('[data-chart=loss] svg text')].map((text) => text.textContent)"
    assert "steps" in page.evaluate(title)
    page.keyboard.press("ArrowDown")
    page.wait_for_function(f"({title})().includes('tokens')")
    page.close()


def test_runs_beside_each_other(browser: Any, tmp_path: Path):
    runs = [
        read_run(
            write_folder(
                tmp_path / name,
                [3.0 - slope * step for step in range(50)],
                {50: {"loss": 1.0, "accuracy": slope}},
                result={"metrics": {"accuracy": slope}},
                optimizer={"lr": slope},
            ),
        )
        for name, slope in (("slow", 0.01), ("fast", 0.02))
    ]
    path = tmp_path / "compared.html"
    path.write_text(html_of(page_of_runs(runs)), encoding="utf-8")
    opened = Opened(browser, path)
    assert opened.errors == []
    settings = opened.page.locator("section", has=opened.page.locator("h2", has_text="Settings that differ"))
    rows = settings.locator("tbody tr").all_inner_texts()
    assert [row.split("\t") for row in rows] == [["optimizer.lr", "0.01", "0.02"]]
    legend = opened.page.locator("[data-chart=loss] svg .role-legend-label").all_text_contents()
    assert legend == ["slow", "fast"]
    opened.page.close()


def test_a_real_run_leaves_its_page(browser: Any, shared: Path, tmp_path: Path):
    changes = {"report": {"page": True}, "train": {"max_steps": 4}}
    data = tiny.settings(shared, tmp_path)["data"]
    file = tiny.write_run(tmp_path, tiny.settings(shared, tmp_path, data={**data, "test": data["eval"]}, **changes))
    assert tiny.command("train", file).code == 0
    opened = Opened(browser, tmp_path / "run/report.html")
    assert opened.errors == []
    titles = opened.page.locator("h2").all_inner_texts()
    assert titles == ["Curves", "Held-out rows", "Test rows", "Data", "Settings", "Versions", "Again"]
    opened.page.close()
    done = tiny.command("report", tmp_path / "run", "--out", tmp_path / "again.html", "--png", tmp_path / "pictures")
    assert done.code == 0
    assert (tmp_path / "pictures/loss.png").read_bytes()[:4] == b"\x89PNG"
    refused = tiny.command("report", tmp_path / "run", "--out", tmp_path / "no folder/page.html")
    assert refused.code == 2
    assert "cannot be written" in refused.stderr
