"""Reading the page as a person does: by filter, by keyboard, with storage refused; and taking its numbers away."""

import csv
import json
import re
import time

import numpy as np
import pytest

from lowdyn.report.figures import values_of
from tests.pages import SOFTWARE_WEBGL, assert_no_complaints, lines_figure, pixels, result, surface_figure, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reading")
    results = [
        result("C4", part="predict"),
        result(
            "C1",
            False,
            part="see",
            source_sha256="5" * 64,
            checks=[{"text": "R²", "measured": 0.5, "expected": "≥ 0.9", "holds": False}],
        ),
        result("C16", None, part="use", reason="no sentences; put them into the data folder", checks=[]),
    ]
    write(folder, results, {"C4": surface_figure(), "C1": lines_figure()})
    return folder


@pytest.fixture(scope="module")
def reader(open_browser, folder):
    """A browser on the page, which downloads into its folder."""
    browser = open_browser(*SOFTWARE_WEBGL)
    target = {"behavior": "allow", "downloadPath": str(folder / "got")}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", target)
    browser.get((folder / "index.html").as_uri())
    return browser


def shown(browser):
    return [one.get_attribute("id") for one in browser.find_elements("css selector", "article") if one.is_displayed()]


@pytest.mark.browser
@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_filters_show_the_claims_of_one_verdict(reader, by):
    def press(button):
        button.click() if by == "mouse" else button.send_keys(" ")

    buttons = {one.get_attribute("data-filter"): one for one in reader.find_elements("css selector", "[data-filter]")}
    assert list(buttons) == ["all", "holds", "fails", "cannot"]
    for verdict, ids in {"fails": ["C1"], "cannot": ["C16"], "holds": ["C4"], "all": ["C1", "C4", "C16"]}.items():
        press(buttons[verdict])
        assert shown(reader) == ids
        assert reader.find_element("id", "_shown").text == f"{len(ids)} of 3 claims shown"
        pressed = [name for name, one in buttons.items() if one.get_attribute("aria-pressed") == "true"]
        assert pressed == [verdict]
        parts = reader.find_elements("css selector", ".part")
        assert sum(part.is_displayed() for part in parts) == len(ids)
    assert_no_complaints(reader)


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_pressed_filter_keeps_its_mark(reader, theme):
    """The cross is seen in the middle of its square, whatever the colours of the button."""
    button = reader.find_element("css selector", "[data-filter=fails]")
    square = button.find_element("css selector", "svg")
    reader.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
    for other in ("all", "fails"):
        reader.find_element("css selector", f"[data-filter={other}]").click()
        found, width = pixels(reader, square)
        middle = len(found) // width // 2 * width + width // 2
        cross, side = (
            np.array([place >> shift & 255 for shift in (0, 8, 16)]) for place in found[middle : middle - 5 : -4]
        )
        assert np.abs(cross - side).max() > 96, f"{theme}, {other} pressed"
    reader.execute_script("delete document.documentElement.dataset.theme")


@pytest.mark.browser
def test_a_link_leads_to_a_claim_that_the_filter_hides(reader):
    reader.find_element("css selector", "[data-filter=holds]").click()
    reader.execute_script("location.hash = 'C1'")
    time.sleep(0.3)
    assert "C1" in shown(reader)


@pytest.mark.browser
@pytest.mark.parametrize("name", ["C1", "C4"])
def test_the_download_holds_what_is_drawn(reader, folder, name):
    button = reader.find_element("css selector", f"[data-download='_figure:{name}']")
    reader.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.send_keys("\ue007")  # enter
    path = folder / "got" / f"lowdyn-{name}.csv"
    for _ in range(100):
        if path.is_file():
            break
        time.sleep(0.05)
    rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    figure = json.loads((folder / name / "figure.json").read_text())
    if name == "C4":
        drawn = np.concatenate([values_of(trace["z"]).ravel() for trace in figure["data"]])
        assert rows[0] == ["panel", "index", "step", "value"]
        got = np.array([float(row[3]) for row in rows[1:]])
    else:
        (line,) = [trace for trace in figure["data"] if trace["mode"] == "lines"]
        (band,) = [trace for trace in figure["data"] if trace["mode"] == "none"]
        assert rows[0] == ["panel", "series", "x", "y", "low", "high"]
        got = np.array([[float(cell) for cell in row[3:]] for row in rows[1:-1]]).T.ravel()
        low, high = np.split(values_of(band["y"]), 2)
        drawn = np.concatenate([values_of(line["y"]), low, high[::-1]])
        assert rows[-1][3] == "0.01"  # the limit
    np.testing.assert_array_equal(got.astype(np.float32), drawn.astype(np.float32))


SEEN = """
    const [start, query] = arguments;
    return [...document.querySelectorAll(`${start} ${query}`)]
      .filter((one) => one.checkVisibility({visibilityProperty: true}) && one.getClientRects().length > 0)
      .map((one) => [getComputedStyle(one).display, one.innerText, one.getBoundingClientRect().left]);
"""


@pytest.fixture
def on_paper(reader, folder):
    """The page as A4 shows it, 718 pixels between its margins; nothing was opened before."""
    reader.get((folder / "index.html").as_uri())
    reader.execute_script("localStorage.clear(); document.documentElement.dataset.theme = 'dark'")
    size = {"width": 718, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    reader.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    reader.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    yield reader
    reader.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    reader.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.browser
def test_a_printed_page_has_tables_seeds_command_and_source(on_paper):
    for query in (".sides", ".checks"):
        ((display, _, _),) = on_paper.execute_script(SEEN, "#C1", query)
        assert display == "table"
        heads = on_paper.execute_script(SEEN, "#C1", f"{query} thead th")
        assert len(heads) >= 3
        assert all(left >= 0 for *_, left in heads)
    assert len(on_paper.execute_script(SEEN, ".verdicts", "td.spare")) == 3 * 2  # paper scale and time
    assert [text for _, text, _ in on_paper.execute_script(SEEN, "#C1", "pre code")] == [
        "lowdyn reproduce C1 --scale smoke"
    ]
    records = "".join(text for _, text, _ in on_paper.execute_script(SEEN, "#C1", ".provenance .records div"))
    for said in ("seeds", "0, 1", "source, SHA-256", "5" * 64):
        assert said in records


@pytest.mark.browser
def test_a_printed_page_is_light_keeps_its_bar_and_what_was_opened(on_paper):
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    paper = [int(part) for part in re.findall(r"\d+", on_paper.execute_script(style, "body", "backgroundColor"))]
    assert min(paper[:3]) > 240
    assert on_paper.execute_script(style, ".bar span", "print-color-adjust") == "exact"
    assert on_paper.execute_script(SEEN, "#_filters", "button") == []
    assert on_paper.execute_script(SEEN, "#C1", ".words") == []
    on_paper.execute_script("document.querySelector('#C1 .words').open = true")
    ((_, text, _),) = on_paper.execute_script(SEEN, "#C1", ".words ul")
    assert "from 1 at 0" in text


@pytest.mark.browser
def test_the_theme_works_where_storage_is_refused(open_browser, folder):
    browser = open_browser()
    refuse = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError'); }})"
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": refuse})
    browser.get((folder / "index.html").as_uri())
    button = browser.find_element("id", "_theme")
    before = button.text
    button.send_keys("\ue007")
    assert {before, button.text} == {"Dark page", "Light page"}
    assert_no_complaints(browser)


@pytest.mark.browser
def test_a_chosen_theme_is_remembered(reader, folder):
    reader.execute_script("localStorage.setItem('lowdyn-theme', 'dark')")
    reader.refresh()
    assert reader.execute_script("return document.documentElement.dataset.theme") == "dark"
    reader.execute_script("localStorage.clear()")
