import json
import re
import time

import pytest

from tests.pages import (
    CLOSING,
    HOSTILE,
    IMAGE,
    SCRIPT,
    SOFTWARE_WEBGL,
    assert_no_complaints,
    assert_quiet,
    colours,
    draw_all,
    network,
    result,
    surface_figure,
    wait_for,
    write,
)


@pytest.fixture(scope="module")
def browser(open_browser, page):
    """The page with all its figures drawn."""
    browser = open_browser(*SOFTWARE_WEBGL)
    assert draw_all(browser, page) == dict.fromkeys(["C1", "C4", "C9", "C17"], "drawn")
    return browser


@pytest.mark.browser
def test_the_page_is_quiet(browser):
    assert_quiet(browser)


@pytest.mark.browser
def test_every_verdict_is_visible(browser):
    cells = browser.find_elements("css selector", ".verdicts tbody .badge")
    assert [cell.text for cell in cells] == [
        "holds",
        "holds",
        "holds",
        "cannot be judged",
        "does not hold",
        "error",
    ]
    for cell in cells + browser.find_elements("css selector", ".claim .verdict .badge"):
        assert cell.is_displayed()
        assert cell.find_element("css selector", "svg").rect["width"] > 8


@pytest.mark.browser
@pytest.mark.parametrize("name", ["C1", "C9", "C17"])
def test_every_plot_shows_its_points(browser, name):
    box = browser.find_element("css selector", f"[data-name={name}]")
    marks = box.find_elements("css selector", ".scatterlayer .points path, .scatterlayer .lines path")
    assert len(marks) >= 1
    assert all(
        drawing.rect["width"] > 300 and drawing.rect["height"] > 200
        for drawing in box.find_elements("css selector", ".main-svg")
    )
    assert colours(browser, box) > 20


@pytest.mark.browser
def test_the_surfaces_are_drawn_and_the_keyboard_turns_them(browser):
    box = browser.find_element("css selector", "[data-name=C4]")
    browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", box)
    canvases = [one for one in box.find_elements("css selector", ".gl-container canvas") if one.rect["width"] > 100]
    assert len(canvases) == 3
    assert all(colours(browser, canvas) > 100 for canvas in canvases)
    before, picture = (
        browser.execute_script("return arguments[0].layout.scene.camera.eye", box),
        box.screenshot_as_base64,
    )
    browser.execute_script("arguments[0].focus()", box)
    box.send_keys("\ue014" * 3)  # arrow right
    time.sleep(0.5)
    after = browser.execute_script("return arguments[0].layout.scene2.camera.eye", box)
    assert (before["z"], before["x"]) != (after["z"], after["x"])
    assert after["z"] == pytest.approx(before["z"])
    assert box.screenshot_as_base64 != picture
    assert_no_complaints(browser)


@pytest.mark.browser
def test_hostile_text_is_shown_and_does_nothing(browser):
    text = browser.find_element("tag name", "body").text
    for hostile in HOSTILE[:3]:
        assert hostile in text
    assert browser.title == "lowdyn: 3 of 6 claims hold"
    assert browser.find_elements("css selector", "main img") == []
    assert len(browser.find_elements("tag name", "script")) == 9
    plot = browser.find_element("css selector", "[data-name=C9]")
    shown = browser.execute_script(
        "return [...arguments[0].querySelectorAll('text')].map(node => node.textContent)", plot
    )
    assert {SCRIPT, IMAGE, CLOSING} <= set(shown)
    assert any(line.startswith(CLOSING + "line") for line in shown)


@pytest.mark.browser
def test_no_button_uploads_a_figure(browser):
    labels = {one.get_attribute("aria-label") for one in browser.find_elements("css selector", ".modebar-btn")}
    assert len(labels) > 3
    assert not [label for label in labels if re.search("share|cloud|edit", label, re.IGNORECASE)]


@pytest.mark.browser
def test_the_theme_can_be_switched_and_reaches_the_figures(browser):
    def look():
        return browser.execute_script("""
            const style = (query) => getComputedStyle(document.querySelector(query));
            return [style("body").backgroundColor, style("[data-name=C9] .xtick text").fill,
                    document.querySelector("[data-name=C4]")._fullLayout.scene.xaxis.tickfont.color,
                    JSON.stringify(document.querySelector("[data-name=C4]").layout.scene.camera.eye)];
        """)

    button = browser.find_element("id", "_theme")
    browser.execute_script("scrollTo({top: 0, behavior: 'instant'})")
    light, label = look(), button.text
    button.click()
    time.sleep(1)
    dark = look()
    assert (label, button.text) == ("Dark page", "Light page")
    assert [a != b for a, b in zip(light, dark, strict=True)] == [True, True, True, False]
    button.click()
    time.sleep(1)
    assert look() == light
    assert_no_complaints(browser)


@pytest.mark.browser
def test_the_page_follows_the_theme_of_the_system_and_a_narrow_window(browser, page):
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_script("localStorage.clear()")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        draw_all(browser, page)
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
        background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert max(int(part) for part in re.findall(r"\d+", background)) < 64
        tops = [one.rect["y"] for one in browser.find_elements("css selector", "[data-name=C4] .gl-container canvas")]
        assert max(tops) - min(tops) > 600
        assert_quiet(browser)
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.browser
def test_without_webgl_a_sentence_stands_for_the_surfaces(open_browser, page):
    browser = open_browser("--disable-gpu", "--disable-3d-apis")
    assert draw_all(browser, page) == {"C1": "drawn", "C4": "failed", "C9": "drawn", "C17": "drawn"}
    sentence = browser.find_element("css selector", "#C4 .problem")
    assert sentence.is_displayed()
    assert "WebGL" in sentence.text
    assert_quiet(browser)


@pytest.mark.browser
def test_more_surfaces_than_a_browser_has_contexts_for(open_browser, tmp_path):
    names = [f"C{k}" for k in range(1, 6)]
    path = write(tmp_path, [result(name) for name in names], {name: surface_figure() for name in names})
    browser = open_browser(*SOFTWARE_WEBGL)
    assert draw_all(browser, path) == dict.fromkeys(names, "drawn")
    first = browser.find_element("css selector", "[data-name=C1]")
    assert first.get_attribute("data-state") == "waiting"
    # Coming back draws it again, although the five together need more contexts than there are.
    assert wait_for(first) == "drawn"
    assert_quiet(browser)


@pytest.mark.browser
def test_a_figure_that_cannot_be_drawn_says_so(open_browser, tmp_path):
    figure = {"data": [{"type": "scatter", "y": [1, 2]}], "layout": {"template": 7}}
    browser = open_browser()
    assert draw_all(browser, write(tmp_path, [result("C4")], {"C4": json.dumps(figure)})) == {"C4": "failed"}
    sentence = browser.find_element("css selector", "#C4 .problem")
    assert sentence.is_displayed()
    assert sentence.text.startswith("This picture cannot be drawn (")
    assert_quiet(browser)


@pytest.mark.browser
def test_a_figure_cannot_reach_the_network(open_browser, tmp_path):
    image = {"source": "https://example.invalid/x.png", "x": 0, "y": 1, "sizex": 1, "sizey": 1}
    figure = {"data": [{"type": "scatter", "y": [1, 2]}], "layout": {"images": [image]}}
    browser = open_browser()
    assert draw_all(browser, write(tmp_path, [result("C4")], {"C4": json.dumps(figure)})) == {"C4": "drawn"}
    time.sleep(0.5)
    assert [event["blockedReason"] for event in network(browser, "loadingFailed")] == ["csp"]
