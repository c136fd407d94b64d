"""The page in a real browser: Debian's Chromium, driven by playwright, at two widths and in two
colour schemes.

The run behind it has hostile names. A page opens from its file alone: any request, console message
or script is a failure.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import HOSTILE_CLASSES, HOSTILE_DESCRIPTION, HOSTILE_NAME
from playwright.sync_api import Browser, Page, sync_playwright

from distill.errors import printable
from distill.report.write import write_report

WIDTHS = (380, 1440)
SCHEMES = ("light", "dark")
# WCAG 2.1, AA: of text, and of what a figure draws.
TEXT_CONTRAST, GRAPHICS_CONTRAST = 4.5, 3.0

# The contrast of each text with what lies behind it, as [text, ratio]; a background that shows
# through is laid over the one below.
CONTRASTS = """() => {
  const channels = (text) => {
    const found = text.match(/[\\d.]+/g).map(Number);
    return found.length === 3 ? [...found, 1] : found;
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const behind = (element) => {
    if (element === null) return [255, 255, 255];
    const own = channels(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, behind(element.parentElement));
  };
  const luminance = (rgb) => {
    const linear = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92
      : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const ratio = (one, two) => {
    const [low, high] = [luminance(one), luminance(two)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const found = {text: [], graphics: []};
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || element.getClientRects().length === 0) continue;
    const style = getComputedStyle(element), ground = behind(element);
    const colour = channels(element instanceof SVGElement ? style.fill : style.color);
    const size = parseFloat(style.fontSize);
    found.text.push([text, ratio(over(colour, ground), ground), size]);
  }
  for (const path of document.querySelectorAll(".drawn svg path, .legend path")) {
    const stroke = getComputedStyle(path).stroke;
    const series = path.style.stroke.includes("--series");
    if (series) found.graphics.push([stroke, ratio(channels(stroke).slice(0, 3), behind(path))]);
  }
  return found;
}"""
# Of each figure: its title, its box, and the boxes of what it draws.
FIGURES = """() => [...document.querySelectorAll(".drawn")].map((figure) => {
  const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect();
  const inside = [...svg.querySelectorAll("path, use, text")].map((e) => e.getBoundingClientRect());
  return {
    title: figure.textContent.trim().slice(0, 40),
    width: box.width, height: box.height,
    curves: [...svg.querySelectorAll("path")].filter((e) => /--(series|gain|loss|muted)/.test(
      e.getAttribute("style")) && e.getBoundingClientRect().width > 10).length,
    texts: svg.querySelectorAll("text").length,
    outside: inside.filter(
      (b) => b.width && (b.left < box.left - 2 || b.right > box.right + 2)).length,
  };
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("needs Debian's package chromium")
    with sync_playwright() as playwright:
        # In a container as root Chromium's own sandbox does not start.
        launched = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def html(hostile_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([hostile_run], tmp_path_factory.mktemp("page"))[0]


class Opened:
    """A page in the browser, and what it did beside being shown."""

    def __init__(self, browser: Browser, file: Path, width: int, scheme: Any) -> None:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        self.context = context
        self.page: Page = context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.goto(file.as_uri())
        self.page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(
            self.page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
        )


@pytest.fixture(scope="module", params=[(w, s) for w in WIDTHS for s in SCHEMES], ids=str)
def opened(browser: Browser, html: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    width, scheme = request.param
    found = Opened(browser, html, width, scheme)
    yield found
    found.context.close()


def test_the_page_fits_and_is_quiet(opened: Opened, html: Path) -> None:
    assert opened.overflow() == 0
    assert opened.complaints == []
    others = [url for url in opened.requests if not url.startswith("data:")]
    assert others == [html.as_uri()]


def test_texts_and_curves_can_be_read(opened: Opened) -> None:
    found = opened.page.evaluate(CONTRASTS)
    assert len(found["text"]) > 200
    assert [each for each in found["text"] if each[1] < TEXT_CONTRAST] == []
    assert len(found["graphics"]) > 20
    assert [each for each in found["graphics"] if each[1] < GRAPHICS_CONTRAST] == []


def test_every_figure_is_drawn(opened: Opened) -> None:
    figures = opened.page.evaluate(FIGURES)
    titles = " ".join(figure["title"] for figure in figures)
    for title in ("Loss, total", "Top-1", "Agreement", "Learning rate", "Gradient norm, soft term"):
        assert title in titles
    for figure in figures:
        assert figure["width"] > 250, figure
        assert figure["height"] > 60, figure
        assert figure["curves"] >= 1, figure
        assert figure["texts"] >= 4, figure
        assert figure["outside"] == 0, figure
    images = opened.page.evaluate(
        "[...document.images].map((i) => [i.complete, i.naturalWidth, i.clientHeight])"
    )
    assert len(images) > 3
    assert all(complete and width and height for complete, width, height in images)


def test_labels_of_axes_do_not_touch(opened: Opened) -> None:
    touching = opened.page.evaluate(
        """() => [...document.querySelectorAll(".drawn svg")].flatMap((svg) => {
          const boxes = [...svg.querySelectorAll("text")].map((e) =>
            [e.textContent, e.getBoundingClientRect()]);
          const pairs = boxes.flatMap((a, i) => boxes.slice(i + 1).map((b) => [a, b]));
          return pairs.filter(([[, a], [, b]]) => a.left < b.right - 1 && b.left < a.right - 1
            && a.top < b.bottom - 2 && b.top < a.bottom - 2).map(([a, b]) => [a[0], b[0]]);
        })"""
    )
    assert touching == []


def test_hostile_names_stay_text(opened: Opened) -> None:
    text = opened.page.evaluate("document.body.innerText")
    for name in (HOSTILE_NAME, HOSTILE_DESCRIPTION, *HOSTILE_CLASSES):
        assert printable(name) in text
    assert "&amp; {{ 0 }}.png" in text or "&amp; {{ 1 }}.png" in text
    title = opened.page.title()
    assert title.startswith(HOSTILE_NAME)
    made_of_names = (
        "i, script, iframe, object, embed, link, [onerror], [onload], img:not([src^='data:'])"
    )
    assert opened.page.locator(made_of_names).count() == 0
    # The label of each image is bold.
    bold = opened.page.evaluate("[...document.querySelectorAll('b')].map((e) => e.textContent)")
    assert set(bold) <= set(map(printable, HOSTILE_CLASSES))


def test_several_runs_fit_too(
    browser: Browser, hostile_run: Path, tiny_run: Path, tmp_path: Path
) -> None:
    html, _ = write_report([hostile_run, tiny_run], tmp_path)
    for width in WIDTHS:
        opened = Opened(browser, html, width, "dark")
        assert opened.overflow() == 0
        assert opened.complaints == []
        found = opened.page.evaluate(CONTRASTS)
        assert [each for each in found["text"] if each[1] < TEXT_CONTRAST] == []
        assert all(figure["curves"] >= 2 for figure in opened.page.evaluate(FIGURES))
        opened.context.close()


def test_the_checks_of_this_file_see_faults(browser: Browser, html: Path, tmp_path: Path) -> None:
    """A page with a script, a remote picture, pale text and a wide box fails each check."""
    broken = html.read_text().replace(
        "</main>",
        "<p style='color: #999; background: #888'>pale</p><div style='width: 3000px'>wide</div>"
        "<img src='https://example.com/x.png'><script>console.error('loud')</script></main>",
    )
    start = broken.index('<meta http-equiv="Content-Security-Policy"')
    broken = broken[:start] + broken[broken.index(">", start) + 1 :]
    file = tmp_path / "broken.html"
    file.write_text(broken)
    opened = Opened(browser, file, 380, "light")
    assert opened.overflow() > 1000
    assert any("loud" in each for each in opened.complaints)
    assert any("example.com" in url for url in opened.requests)
    pale = [each for each in opened.page.evaluate(CONTRASTS)["text"] if each[1] < TEXT_CONTRAST]
    assert [each[0] for each in pale] == ["pale"]
    opened.context.close()
