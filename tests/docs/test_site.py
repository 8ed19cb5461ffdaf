"""The built site in a real browser, as wide as a desk and as a phone. `make test-site` builds it first."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import matplotlib.image
import pytest
from browser import BROWSER, browse

SITE = Path(__file__).parents[2] / "docs" / "_build" / "html"
PAGES = ["index.html", "explanation/foundations/clipping.html", "reference/losses.html"]
WIDTHS = {"desktop": 1280, "phone": 390}

pytestmark = [
    pytest.mark.site,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
    pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="no built site: make docs"),
]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a folder's server; the site's, unless the test names another."""
    folder = tmp_path if getattr(request, "param", "site") == "own" else SITE
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


# Windows have a least width, which is more than a phone's; frames have none. The theme cuts off what is too wide, so
# that the page itself never is: what counts is what sticks out, but for that which scrolls by itself.
FRAME = """<body style="margin:0"><iframe src="/{page}" width="{width}" height="900" style="border:0"></iframe><script>
onload = () => {{
  const page = document.querySelector("iframe").contentWindow, article = page.document.querySelector("article");
  const scrolls = part => part !== article && (
    ["auto", "scroll"].includes(page.getComputedStyle(part).overflowX) || scrolls(part.parentElement));
  const out = [...article.querySelectorAll("*")].filter(
    part => part.getBoundingClientRect().right > page.innerWidth && !scrolls(part));
  document.body.dataset.out = out.map(part => part.tagName).join(" ");
  document.body.dataset.text = article.innerText.length;
  const style = page.document.createElement("style");
  style.textContent = "* {{ transition: none !important }}";
  page.document.head.append(style);
  for (const theme of ["light", "dark"]) {{
    page.document.body.dataset.theme = theme;
    document.body.dataset[theme] = pale(page, page.document.body).join("; ");
  }}
}}
{contrast}
</script>"""

# Words against what is behind them, by the formula of WCAG 2.2: 4.5 at least, 3 for large ones.
CONTRAST = """
const numbers = color => color.match(/[\\d.]+/g).map(Number);
const light = color => numbers(color).slice(0, 3).map(v => v / 255).map(
  v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const over = (top, below) => {
  const [r, g, b, a = 1] = numbers(top), under = numbers(below);
  return `rgb(${[r, g, b].map((v, i) => a * v + (1 - a) * under[i]).join(", ")})`;
};
const behind = (page, part) => part === null ? "rgb(255, 255, 255)"
  : over(page.getComputedStyle(part).backgroundColor, behind(page, part.parentElement));
function pale(page, root) {
  const found = new Set();
  for (const part of root.querySelectorAll("*")) {
    const words = [...part.childNodes].filter(node => node.nodeType === 3 && node.textContent.trim());
    const style = page.getComputedStyle(part);
    if (!words.length || !part.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    const ground = behind(page, part), [one, other] = [light(over(style.color, ground)), light(ground)];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const size = parseFloat(style.fontSize), bold = parseInt(style.fontWeight) >= 700;
    if (ratio < (size >= 24 || (bold && size >= 18.66) ? 3 : 4.5)) {
      found.add(`${part.tagName}.${part.className} ${ratio.toFixed(2)} ${style.color} on ${ground}`);
    }
  }
  return [...found];
}
"""


def opened(served: str, folder: Path, page: str, width: int) -> tuple[str, str, set[str]]:
    """What the page became, what the console said, and what was asked of others than the server."""
    frame = SITE / "_frame.html"
    frame.write_text(FRAME.format(page=page, width=width, contrast=CONTRAST), encoding="utf-8")
    try:
        ran, asked = browse(
            f"{served}/_frame.html",
            folder,
            "--dump-dom",
            f"--screenshot={folder / 'page.png'}",
            width=max(width, 500),
            seconds=5,
        )
    finally:
        frame.unlink()
    foreign = {url for url in asked if urlsplit(url).netloc != urlsplit(served).netloc}
    return ran.stdout, "\n".join(line for line in ran.stderr.splitlines() if "CONSOLE" in line), foreign


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_and_asks_nothing_of_the_network(served: str, tmp_path: Path, page: str, width: int) -> None:
    body, console, foreign = opened(served, tmp_path, page, width)
    assert console == ""
    assert foreign == set()
    assert re.search(r'data-out="([^"]*)"', body)[1] == "", "wider than the screen"
    assert int(re.search(r'data-text="(\d+)"', body)[1]) > 500
    for theme in ("light", "dark"):
        assert re.search(rf'data-{theme}="([^"]*)"', body)[1] == "", f"too pale in the {theme} theme"
    assert matplotlib.image.imread(tmp_path / "page.png").std() > 0.02, "the page is blank"


@pytest.mark.parametrize("words", ["focal", "warmup cosine"])
def test_search_finds_a_page_and_shows_the_words(served: str, tmp_path: Path, words: str) -> None:
    ran, asked = browse(
        f"{served}/search.html?q={words.replace(' ', '+')}", tmp_path, "--dump-dom", width=1280, seconds=20
    )
    assert "CONSOLE" not in ran.stderr
    assert all(url.startswith(served) for url in asked)
    results = ran.stdout[ran.stdout.index('id="search-results"') :]
    assert 'href="reference/' in results
    assert words.split()[0] in results.lower()


@pytest.mark.parametrize("served", ["own"], indirect=True)
def test_a_foreign_request_and_a_script_error_would_be_seen(served: str, tmp_path: Path) -> None:
    page = '<img src="http://127.0.0.1:9/x.png"><script>throw new Error("x")</script>'
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    ran, asked = browse(f"{served}/page.html", tmp_path, "--dump-dom")
    assert "http://127.0.0.1:9/x.png" in asked
    assert "CONSOLE" in ran.stderr


@pytest.mark.parametrize("served", ["own"], indirect=True)
def test_pale_words_would_be_seen(served: str, tmp_path: Path) -> None:
    words = (
        '<p style="color: #777">4.48 on white</p><p style="color: #767676">4.54</p><h1 style="color: #949494">3.03</h1>'
    )
    (tmp_path / "page.html").write_text(f"<article>{words}</article>", encoding="utf-8")
    frame = FRAME.format(page="page.html", width=390, contrast=CONTRAST)
    (tmp_path / "frame.html").write_text(frame, encoding="utf-8")
    ran, _ = browse(f"{served}/frame.html", tmp_path, "--dump-dom", seconds=5)
    (pale,) = re.findall(r'data-light="([^"]*)"', ran.stdout)
    assert pale == "P. 4.48 rgb(119, 119, 119) on rgb(255, 255, 255)"
