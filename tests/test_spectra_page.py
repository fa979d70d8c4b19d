import base64
import hashlib
import math

import numpy as np
import pytest
import torch

from lowdyn.inspection import Inspection, Layer, Spectrum, inspect_weights
from lowdyn.report import write_spectra
from lowdyn.report.spectra import DECADES, factored_share, polyline, totals
from tests.cases import gaussian
from tests.pages import HOSTILE, Parsed, assert_quiet
from tests.weight_files import low_rank, save


def spectrum(rows, columns, rank=3):
    values = np.geomspace(1, 1e-6, min(rows, columns))
    return Spectrum(values, float(np.linalg.norm(values)), rank, 1.5, 2.5, rank, 0.995)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with hostile text wherever text can be, of weights with and without a reference."""
    layers = [
        Layer(name, (8, 2, 3), (8, 6), "float32", spectrum(8, 6), spectrum(8, 6), 0.02) for name in (*HOSTILE, "a.b.c")
    ]
    layers.append(Layer("alone", (4, 4), (4, 4), "bfloat16", spectrum(4, 4)))
    found = Inspection(HOSTILE[0], HOSTILE[1], 0.99, tuple(layers), HOSTILE)
    return write_spectra(found, tmp_path_factory.mktemp("page") / "spectra.html")


def test_hostile_text_stays_text(page):
    parsed = Parsed(page)
    for text in HOSTILE:
        assert text in parsed.text
    assert len(parsed.scripts) == 1  # the switch of light and dark
    assert not parsed.all("img")
    assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)


def test_the_page_asks_for_nothing(page):
    parsed = Parsed(page)
    (policy,) = [meta["content"] for meta in parsed.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    (script,) = [text for _, text in parsed.scripts]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert not any("src" in attributes for _, attributes in parsed.elements)
    assert {attributes["href"] for _, attributes in parsed.elements if "href" in attributes} == {"data:,", "#_start"}
    assert "http" not in page.read_text().replace("http-equiv", "")


@pytest.mark.parametrize("compared", [False, True])
def test_what_is_measured_stands_on_the_page(tmp_path, compared):
    before = {"block.weight": gaussian(30, 20).float(), "conv.weight": gaussian(8, 2, 3, 3).float()}
    after = {**before, "block.weight": before["block.weight"] + 0.1 * low_rank(30, 20, 2).float()}
    paths = [save(tmp_path / name, tensors) for name, tensors in (("after", after), ("before", before))]
    found = inspect_weights(*paths[: 1 + compared])
    text = " ".join(Parsed(write_spectra(found, tmp_path / "page.html")).text.split())
    assert "2 matrices with 744 weights" in text
    assert "8 × 18, out x in·3·3 of 8 × 2 × 3 × 3 · float32" in text
    assert ("What training added" in text) == compared
    if compared:
        norms = [torch.cat([tensor.flatten() for tensor in tensors.values()]).norm() for tensors in (after, before)]
        difference = (after["block.weight"] - before["block.weight"]).norm() / norms[1]
        assert f"{100 * float(difference):.0f} % of their norm" in text
        assert totals(found.layers)["change"] == pytest.approx(float(difference), rel=1e-6)
        assert totals(found.layers)["share"] == pytest.approx(2 * 50 / 744)


def test_factors_that_save_nothing_are_the_whole():
    assert factored_share(Layer("w", (8, 6), (8, 6), "float32", spectrum(8, 6, rank=3))) == pytest.approx(42 / 48)
    assert factored_share(Layer("w", (8, 6), (8, 6), "float32", spectrum(8, 6, rank=4))) == 1.0


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [1.0], [1.0, 0.0], np.geomspace(1, 1e-9, 5000), [math.inf, 1.0]])
def test_lines_stay_in_their_box(values):
    points = [tuple(map(float, point.split(","))) for point in polyline(values, 150, 44).split()]
    assert all(0 <= x <= 150 and 0 <= y <= 44 for x, y in points)
    assert len(points) <= 200
    assert points == sorted(points)


def test_a_line_falls_by_its_decades():
    points = [point.split(",") for point in polyline(10.0 ** -np.arange(DECADES + 1), 100, 40).split()]
    assert [float(y) for _, y in points] == [10.0 * decade for decade in range(DECADES + 1)]


@pytest.mark.browser
def test_the_page_in_a_browser(page, open_browser):
    browser = open_browser()
    browser.get(page.as_uri())
    lines = browser.find_elements("css selector", ".spark polyline")
    assert len(lines) == 11
    assert all(line.rect["width"] > 90 and line.rect["height"] > 30 for line in lines)
    width = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]
    assert_quiet(browser)
