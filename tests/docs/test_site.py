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
}}
</script>"""


def opened(served: str, folder: Path, page: str, width: int) -> tuple[str, str, set[str]]:
    """What the page became, what the console said, and what was asked of others than the server."""
    frame = SITE / "_frame.html"
    frame.write_text(FRAME.format(page=page, width=width), encoding="utf-8")
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
