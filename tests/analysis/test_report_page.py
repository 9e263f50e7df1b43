"""The report in a browser: it opens from disk without error or network, in light and dark, on a desk and on a phone."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from certood.analysis import report
from certood.analysis.settings import Settings
from tests.analysis.report_runs import EPS, certificates, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it: two norms, long names, a run that was only evaluated."""
    folder = tmp_path_factory.mktemp("report")
    inside, near = [0.004 * index for index in range(14)], [0.003 * index for index in range(12)]
    runs = [
        write_run(
            folder / f"digits-greg-plus-with-a-rather-long-name-seed-{seed}",
            certificates([(1 + seed) * radius for radius in inside], near),
            fpr95=0.1 + 0.2 * seed,
            n=5000,
        )
        for seed in range(2)
    ]
    runs += [
        write_run(folder / "euclidean", certificates(inside, near), settings=Settings(eps=EPS, norm=2), n=5000),
        write_run(folder / "evaluated", n=5000),
    ]
    report(runs, folder / "report.html")
    return folder / "report.html"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_error_request_or_overflow(
    browser: "Browser", page_file: Path, scheme: str, width: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith(("data:", page_file.as_uri())) else problems.append(request.url),
    )
    page.goto(page_file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    page.wait_for_function("[...document.images].every(image => image.complete)")
    assert problems == []
    sizes = page.evaluate("[...document.images].map(image => [image.naturalWidth, image.alt.length])")
    assert len(sizes) > 10
    assert all(natural > 0 and alt > 0 for natural, alt in sizes)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Text stands out from its paper: the contrast ratio of WCAG AA, 4.5.
    for selector in ("body", ".soft", "td.best", "th", "figcaption", ".verdict", "pre"):
        ink, paper = page.evaluate(
            """selector => {
              const part = document.querySelector(selector);
              let below = part;
              while (getComputedStyle(below).backgroundColor === 'rgba(0, 0, 0, 0)') below = below.parentElement;
              return [getComputedStyle(part).color, getComputedStyle(below).backgroundColor];
            }""",
            selector,
        )
        assert contrast(ink, paper) >= 4.5, (selector, ink, paper)
    dark_page = sum(channels(page.evaluate("getComputedStyle(document.body).backgroundColor"))) < 3 * 128
    assert dark_page == (scheme == "dark")
    # Figures come in the colours of the page.
    shown = page.evaluate(
        "[...document.querySelectorAll('.frame > img')].filter(image => image.offsetParent).map(image => image.className)"
    )
    assert set(shown) == {scheme}
    context.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_table_that_goes_on_to_the_right_says_so(browser: "Browser", page_file: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(page_file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    page.wait_for_timeout(100)
    found = page.evaluate(
        """[...document.querySelectorAll('.scroll')].map(part => [
          part.scrollWidth > part.clientWidth + 2, part.parentElement.querySelector('.cue').offsetParent !== null])"""
    )
    assert found
    assert all(cut == said for cut, said in found)
    assert any(cut for cut, _ in found) or width > 1000
    # At its end there is nothing more to scroll to.
    page.evaluate("document.querySelectorAll('.scroll').forEach(part => { part.scrollLeft = part.scrollWidth; })")
    page.wait_for_function("[...document.querySelectorAll('.cue')].every(cue => cue.offsetParent === null)")
    page.close()


def test_tables_are_sorted_and_values_shown_where_the_pointer_is(browser: "Browser", page_file: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(page_file.as_uri())
    head = page.locator("#summary thead button", has_text="ID radius, certified")
    read = """() => [...document.querySelector('#summary').tBodies].map(body => [...body.rows].slice(1).map(row => {
      const place = [...document.querySelectorAll('#summary thead th')].findIndex(head => head.ariaSort);
      return row.children[place].dataset.value ?? null; }))"""
    for sign in (1, -1):
        head.click()
        for values in page.evaluate(read):
            known = [sign * float(value) for value in values if value is not None]
            assert known == sorted(known)
            assert len(known) > 2
            # What is not known comes last, whichever way the others are sorted.
            assert values[len(known) :] == [None] * (len(values) - len(known))
    assert page.locator("#summary td small").first.is_hidden()
    page.locator(".intervals").first.check()
    assert page.locator("#summary td small").first.is_visible()
    frame = page.locator("figure[data-values] .frame").first
    frame.hover()
    assert "ε in l∞ (pixels): " in page.locator(".values").inner_text()
    page.locator("h1").hover()
    assert page.locator(".values").count() == 0
    page.evaluate("location.hash = '#sources'")
    page.wait_for_function("document.getElementById('sources').open")
    page.close()


@pytest.mark.slow
def test_it_prints(browser: "Browser", page_file: Path, tmp_path: Path) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(page_file.as_uri())
    page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True, print_background=True)
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert content.count(b"/Type /Page\n") >= 3
    # A dark page is printed on white paper.
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("[...document.querySelectorAll('.frame > .dark')].every(image => image.offsetParent === null)")
    page.close()


def channels(colour: str) -> list[float]:
    """The numbers of rgb(r, g, b)."""
    return [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours (WCAG 2.1)."""

    def luminance(colour: str) -> float:
        parts = [value / 255 for value in channels(colour)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)
