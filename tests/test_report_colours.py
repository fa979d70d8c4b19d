"""The colours that the pages declare are far enough apart to be read (WCAG 2.2, 1.4.3 and 1.4.11), in both themes."""

import re

import pytest

from lowdyn.report.frame import asset

DECLARED = re.compile(r"^  --(\w+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);$", re.MULTILINE)
COLOURS = {name: {"light": light, "dark": dark} for name, light, dark in DECLARED.findall(asset("page.css"))}
TEXTS, GROUNDS = ("ink", "soft", "link", "holds", "fails", "cannot", "error"), ("paper", "raised")


def luminance(colour):
    """Return the relative luminance of #rrggbb."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the well-known grey that just misses


def test_every_colour_is_looked_at():
    assert COLOURS.keys() == {*TEXTS, *GROUNDS, "edge", "rule"}  # rules only divide: nothing is lost without them
    for sheet in ("claims.css", "spectra.css"):
        assert not re.search(r"#[0-9a-fA-F]{3,8}\b(?=[;, )])", asset(sheet)), "a colour of its own, in one theme only"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize(("name", "least"), [*((text, 4.5) for text in TEXTS), ("edge", 3.0)])
def test_text_and_edges_stand_out(theme, ground, name, least):
    assert contrast(COLOURS[name][theme], COLOURS[ground][theme]) >= least


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("verdict", ["holds", "fails", "error"])
def test_the_mark_stands_out_of_its_shape(theme, verdict):
    """Paper on the colour of the verdict; on a pressed filter ink on paper, which is among the texts."""
    assert contrast(COLOURS["paper"][theme], COLOURS[verdict][theme]) >= 3
