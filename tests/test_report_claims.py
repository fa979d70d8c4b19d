"""The page that the command wrote of the real claims, in the folder that LOWDYN_REPORT names: CI's smoke run."""

import json
import os
from pathlib import Path

import pytest

from tests.pages import SOFTWARE_WEBGL, assert_quiet, draw_all

FOLDER = os.environ.get("LOWDYN_REPORT")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not FOLDER, reason="LOWDYN_REPORT names no folder that lowdyn reproduce wrote"),
]


def test_every_picture_of_every_claim_is_drawn_and_nothing_is_asked_for(open_browser):
    folder = Path(FOLDER)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    browser = open_browser(*SOFTWARE_WEBGL)
    drawn = draw_all(browser, folder / "index.html")
    assert drawn == {one["id"]: "drawn" for one in results if one["holds"] is not None}
    assert len(browser.find_elements("css selector", ".verdicts tbody .badge")) == len(results)
    assert_quiet(browser)


def test_the_page_is_small():
    assert (Path(FOLDER) / "index.html").stat().st_size < 15 * 2**20
