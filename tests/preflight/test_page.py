from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
from browser import BROWSER, browse
from preflight.reports import ALL, PICTURES, broken, clean, finding, report

from firstlight.checks import Severity
from firstlight.preflight import Suppression, apply_suppressions

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Reader(HTMLParser):
    """Holds that every tag is closed, and keeps what a page could load and what it says."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "title"} & set(self.open[-1:]):
            self.text.append(data)


@pytest.mark.parametrize("name", ALL)
def test_the_page_is_well_formed_and_loads_nothing(name):
    page = ALL[name]().to_html()
    reader = Reader(page)
    assert {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"} == set()
    for tag, attributes in reader.tags:
        assert not [key for key in attributes if key.startswith("on")]
        for key in ("src", "href", "srcset", "data", "action", "xlink:href"):
            assert str(attributes.get(key) or "data:").startswith("data:image/png;base64,") or key not in attributes, (
                tag
            )
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_the_verdict_is_on_top_then_the_lights_then_the_root():
    said = " ".join(" ".join(Reader(broken().to_html()).text).split())
    order = ["Cannot learn as written: FL102 input_scale", "3 errors, 5 warnings", "Data", "Progress", "Diagnosis",
             "96 (limit 10)", "mend it", "2.31 to 0.004", "Explains 2 further findings", "FL202 dead_units",
             "Beside it", "FL103", "Can one batch be learned?", "Checklist"]  # fmt: skip
    places = [said.index(words) for words in order]
    assert places == sorted(places)


def test_every_state_has_a_sign_and_a_word_and_not_only_a_color():
    reader = Reader(broken().to_html())
    signs = {a["aria-label"] for tag, a in reader.tags if "sign" in str(a.get("class")).split() and "aria-label" in a}
    assert signs == {"passed", "info", "warning", "error", "skipped", "crashed"}
    for tag, attributes in reader.tags:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
        if tag == "img":
            assert attributes["alt"]


def test_reasons_and_tracebacks_are_on_it():
    shown = apply_suppressions(broken(), [Suppression("FL202", "from a checkpoint"), Suppression("FL602", "old")])
    said = " ".join(" ".join(Reader(shown.to_html()).text).split())
    for words in ("targets are not the inputs shifted by one", "from a checkpoint", "FL602 is ignored", "KeyError"):
        assert words in said
    assert "Traceback (most recent call last):" in said


@pytest.mark.parametrize("missing", [*PICTURES, "all"])
def test_any_picture_may_be_missing(missing):
    pictures = {} if missing == "all" else {key: value for key, value in PICTURES.items() if key != missing}
    page = report(pictures=pictures).to_html()
    titles = {
        "overfit": "Can one batch",
        "schedule": "The schedule",
        "inputs": "What the model",
        "layers": "Gradient and update",
    }
    for key, title in titles.items():
        assert (title in page) == (key in pictures)


@pytest.mark.parametrize(
    "pictures",
    [
        {"overfit": {"own": [1.0]}},
        {"overfit": {"own": [float("nan")] * 3, "constant": float("nan")}},
        {"overfit": {"own": [-5.0, -7.0], "reference": [], "constant": 0.0}},
        {"overfit": {"constant": 1.0}},
        {"schedule": {"steps": [0], "rates": {"a": [0.0]}}},
        {"schedule": {"steps": [], "rates": {}}},
        {"inputs": {"kind": "numbers", "histogram": {"edges": [1.0, 1.0], "counts": [7]}}},
        {"inputs": {"kind": "tokens", "tokens": [[1, 2], [3, 4]], "labels": []}},
        {"inputs": {"kind": "images", "images": [[[0.0, 0.0]]], "labels": []}},
        {"layers": {"names": ["a"], "gradient": [0.0], "update": [0.0]}},
        {"layers": {"names": [], "gradient": [], "update": []}},
        {"layers": {"names": [f"n{i}" for i in range(500)], "gradient": [10.0**-i for i in range(500)]}},
        {"overfit": {"own": [1.0 / (1 + i) for i in range(5000)]}},
    ],
    ids=str,
)
def test_odd_pictures_are_drawn_without_an_infinite_place(pictures):
    page = report(pictures=pictures).to_html()
    Reader(page)
    body = page[page.index("</style>") :]
    assert len(body) < 60_000
    for value in re.findall(r'(?:points|x|y|cx|cy|width|height|d)="([^"]*)"', body):
        assert "nan" not in value
        assert "inf" not in value


def test_the_images_are_the_inputs_on_one_gray_scale():
    images = np.array([[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], [[5.0, 0.0, 5.0], [0.0, 5.0, 0.0]]])
    page = report(pictures={"inputs": {"kind": "images", "images": images.tolist()}}).to_html()
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    for image, source in zip(images, sources, strict=True):
        decoded = matplotlib.image.imread(io.BytesIO(base64.b64decode(source)), format="png")
        np.testing.assert_allclose(decoded, image / 5.0, atol=0.5 / 255)
    assert "black is 0, white 5" in page


def test_images_may_be_in_color():
    image = np.random.default_rng(0).uniform(-2, 3, (1, 4, 5, 3))
    page = report(pictures={"inputs": {"kind": "images", "images": image.tolist()}}).to_html()
    (source,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    decoded = matplotlib.image.imread(io.BytesIO(base64.b64decode(source)), format="png")
    np.testing.assert_allclose(decoded, (image[0] - image.min()) / (image.max() - image.min()), atol=0.51 / 255)


def test_curves_are_where_their_numbers_are():
    page = report(pictures={"overfit": {"own": [1.0, 3.0, 5.0]}}).to_html()
    points = re.search(r'class="line own" points="([^"]+)"', page)
    places = [tuple(map(float, point.split(","))) for point in points[1].split()]
    ticks = [
        (float(y) - 4, float(text))
        for y, text in re.findall(r'<text x="50" y="([\d.]+)" text-anchor="end">([\d.]+)<', page)
    ]
    slope, start = np.polyfit([value for _, value in ticks], [y for y, _ in ticks], 1)
    np.testing.assert_allclose([y for _, y in places], [start + slope * value for value in (1.0, 3.0, 5.0)], atol=0.2)


def test_what_is_not_finite_is_named_and_not_drawn():
    page = broken().to_html()
    assert len(re.search(r'class="line own" points="([^"]+)"', page)[1].split()) == 2  # of 2.3, 40, inf, nan
    assert "not finite from step 3" in page
    assert len(re.search(r'class="line reference" points="([^"]+)"', page)[1].split()) == 5


def opened(page, folder, *options):
    """Open the text of a page in Chromium; return what it printed, and the addresses that the page asked for."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    return browse((folder / "page.html").as_uri(), folder, *options)


in_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


@pytest.mark.slow
@in_browser
@pytest.mark.parametrize("name", ALL)
def test_a_browser_shows_the_verdict_and_asks_nothing_of_the_network(name, tmp_path):
    ran, asked = opened(ALL[name]().to_html(), tmp_path, "--dump-dom", f"--screenshot={tmp_path / 'page.png'}")
    assert asked == set()
    said = " ".join(" ".join(Reader(ran.stdout).text).split())
    assert ("Nothing was found" if name == "clean" else "Cannot learn as written") in said
    assert "CONSOLE" not in ran.stderr, "the browser complained"
    picture = matplotlib.image.imread(tmp_path / "page.png")
    assert picture.std() > 0.02, "the page is blank"


@pytest.mark.slow
@in_browser
def test_a_request_and_a_script_error_would_be_seen(tmp_path):
    page = '<img src="http://127.0.0.1:9/x.png"><script>throw new Error("x")</script>'
    ran, asked = opened(page, tmp_path, "--dump-dom")
    assert asked == {"http://127.0.0.1:9/x.png"}
    assert "CONSOLE" in ran.stderr


def test_a_clean_page_has_no_diagnosis_and_a_warning_is_the_verdict():
    assert "<h2>Diagnosis</h2>" not in clean().to_html()
    page = report(finding("FL103", Severity.WARNING)).to_html()
    assert 'class="card verdict warning"' in page
