import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lowdyn.plots import Series, curves, embeddings, layer_curves, surfaces
from lowdyn.report import write_report
from lowdyn.report.page import format_number, format_value
from lowdyn.report.results import is_simple_name, read_results

SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror="document.title=1">'
CLOSING = "</script><script>alert(2)</script>"
LINES = "line\u2028separator\u2029and 'quotes' & ampersands"
HOSTILE = (SCRIPT, IMAGE, CLOSING, LINES)


def check(text="the values agree", measured=3.2e-13, expected=0, tolerance=1e-12, holds=True):
    return {"text": text, "measured": measured, "expected": expected, "tolerance": tolerance, "holds": holds}


def result(name, holds=True, **values):
    return {
        "id": name,
        "title": f"Title of {name}",
        "claim": f"This is what {name} claims.",
        "source": "A paper, Figure 1",
        "published": "2r = 6 directions move",
        "deviation": "None.",
        "scale": "smoke",
        "holds": holds,
        "reason": None,
        "checks": [check()],
        "experiments": ["evolution"],
        "settings": {"evolution": {"depth": 3, "sizes": [30, 30, 30, 30], "lr": 1.0}},
        "seeds": [0, 1],
        "seconds": 2.5,
        "versions": {"lowdyn": "0.1.0", "torch": "2.13.0"},
        "machine": {"system": "Linux", "cores": 2},
        "data": None,
        **values,
    }


def write(folder, results, figures=None):
    """Write what the command writes, and the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    for name, figure in (figures or {}).items():
        (folder / name).mkdir()
        (folder / name / "figure.json").write_text(figure if isinstance(figure, str) else figure.to_json())
    return write_report(folder)


def surface_figure(title=""):
    values = np.outer(np.linspace(0, 1, 12), np.linspace(-1, 1, 8) ** 2)
    return surfaces(range(12), {"singular values": values, "right": values, "left": np.sqrt(values)}, title=title)


def lines_figure(title="loss"):
    step = np.arange(50)
    loss = Series(SCRIPT, step, np.exp(-step / 9), np.exp(-step / 9) / 2, np.exp(-step / 9) * 2)
    return curves([loss], x_label="step", y_label=IMAGE, title=title, log_y=True, limit=(CLOSING, 1e-2))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with every verdict, every kind of picture and hostile text wherever text can be."""
    folder = tmp_path_factory.mktemp("report")
    points, labels = np.random.default_rng(0).normal(size=(60, 2)), np.repeat([0, 1, 2], 20)
    fall = [Series("L = 3", range(3), [1, 0.1, 0.01], [0.5, 0.05, 0.005], [2, 0.2, 0.02])]
    hostile = result(
        "C9",
        title=SCRIPT,
        claim=IMAGE,
        source=CLOSING,
        published=LINES,
        deviation=SCRIPT,
        scale=IMAGE,
        checks=[check(text=SCRIPT, measured=IMAGE, expected=CLOSING, holds=None)],
        experiments=[SCRIPT, "../outside", "evolution"],
        settings={IMAGE: {SCRIPT: CLOSING}},
        versions={SCRIPT: IMAGE},
        machine={IMAGE: SCRIPT},
        data={"name": SCRIPT, "used": IMAGE, "sha256": "0" * 64},
    )
    results = [
        result(
            "C17",
            False,
            reason="1 of 2 checks does not hold",
            checks=[check(), check("R²", 0.93, "≥ 0.95", 0.95, False)],
        ),
        result("C4"),
        result(
            "C15", None, reason="cannot: there is no checkpoint", checks=[], experiments=["adapt-vit"], seconds=None
        ),
        result("C27", None, reason="error: MemoryError", checks=[]),
        result("C1", checks=[check("missing numbers", [float("nan"), None, 1.0], "a string", None, None)]),
        hostile,
    ]
    figures = {
        "C4": surface_figure(),
        "C17": layer_curves({"linear": fall, "ReLU": fall}, y_label="D"),
        "C1": embeddings({f"layer {k}": (points, labels) for k in range(4)}, class_names=list(HOSTILE[:3])),
        "C9": lines_figure(CLOSING + LINES),
    }
    (folder / "evolution").mkdir()
    (folder / "evolution" / "trajectory.nc").write_bytes(b"CDF" * 1000)
    return write(folder, results, figures)


class Parsed(HTMLParser):
    """The elements of a page with their attributes, the text outside scripts and styles, the scripts."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text, self.scripts, self.raw = [], "", [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.raw = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append([dict(attrs), ""])

    def handle_endtag(self, tag):
        self.raw = ""

    def handle_data(self, data):
        if self.raw == "script":
            self.scripts[-1][1] += data
        elif not self.raw:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def parsed(page):
    return Parsed(page)


def test_the_page_lies_in_the_folder_and_is_small(page):
    assert page.name == "index.html"
    assert page.stat().st_size < 15e6
    assert not list(page.parent.glob(".index*"))


def test_the_page_refers_to_nothing_outside_its_folder(page, parsed):
    for tag, attributes in parsed.elements:
        assert "src" not in attributes, tag
        target = attributes.get("href", "#")
        if target not in ("data:,", "results.json") and not target.startswith("#"):
            assert (page.parent / target).is_file(), target
    links = {attributes["href"] for attributes in parsed.all("a")}
    assert {"results.json", "C4/figure.json", "evolution/trajectory.nc"} <= links


def test_plotly_is_embedded_once_and_no_hostile_script_is(page, parsed):
    code = [text for attributes, text in parsed.scripts if attributes.get("type") != "application/json"]
    assert len(code) == 2
    assert sum("Plotly, Inc." in text[:500] for text in code) == 1
    assert len(parsed.scripts) == 2 + 4


def test_the_policy_of_the_page_allows_its_own_scripts_and_no_network(parsed):
    (policy,) = [meta["content"] for meta in parsed.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    for attributes, text in parsed.scripts:
        if not attributes:
            assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert "http" not in policy


def test_hostile_text_stays_text(parsed):
    for text in HOSTILE:
        assert text in parsed.text
    assert not parsed.all("img")
    assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)


def test_figures_survive_their_script_elements(page, parsed):
    figures = {attributes["id"]: text for attributes, text in parsed.scripts if "type" in attributes}
    for name, text in figures.items():
        assert not re.search("[<>&\u2028\u2029]", text)
        assert (
            json.loads(text)["data"]
            == json.loads((page.parent / name.split(":")[1] / "figure.json").read_text())["data"]
        )


def test_claims_stand_in_natural_order_with_unique_anchors(parsed):
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    claims = [attributes["id"] for attributes in parsed.all("section") if attributes.get("class") == "claim"]
    assert claims == ["C1", "C4", "C9", "C15", "C17", "C27"]
    used = [attributes["href"].removeprefix("#_") for attributes in parsed.all("use")]
    assert {"holds", "fails", "cannot", "error", "shown"} <= set(used)


def test_text_of_every_part_is_there(parsed):
    text = " ".join(parsed.text.split())
    for part in (
        "3 of 6 claims hold, 1 does not, 1 cannot be judged, 1 ended in an error",
        "This is what C4 claims.",
        "A paper, Figure 1",
        "2r = 6 directions move",
        "cannot: there is no checkpoint",
        "MemoryError",
        "3.2e-13",
        "1e-12",
        "NaN, –, 1",
        "30, 30, 30, 30",
        "There is no picture for this claim.",
        "adapt-vit: no trajectory here",
        "0" * 64,
    ):
        assert part in text


def test_names_that_are_not_simple_never_become_paths(tmp_path):
    folder = tmp_path / "report"
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "trajectory.nc").write_bytes(b"secret")
    (tmp_path / "outside" / "figure.json").write_text(lines_figure().to_json())
    parsed = Parsed(write(folder, [result("../outside", experiments=["../outside", "..", ".", "/etc"])]))
    assert len(parsed.scripts) == 2
    assert {attributes["href"] for attributes in parsed.all("a")} == {"#_verdicts", "#claim-1", "results.json"}
    assert "not a simple name" in parsed.text


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "-rf", ".hidden", "C4\n", "C4 ", "é", "a" * 101, "a..b"]
)
def test_unsafe_names(name):
    assert not is_simple_name(name)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not readable as JSON"),
        ("[]", "does not hold a plotly figure"),
        ('{"data": {}}', "does not hold a plotly figure"),
        ("\udcff", "not readable as JSON"),
    ],
)
def test_a_broken_figure_costs_only_the_picture(tmp_path, content, reason):
    (tmp_path / "C4").mkdir()
    (tmp_path / "C4" / "figure.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    parsed = Parsed(write(tmp_path, [result("C4")]))
    assert "The picture cannot be shown" in parsed.text
    assert reason in parsed.text
    assert "This is what C4 claims." in parsed.text


def test_numbers_that_are_not_json_become_gaps(tmp_path):
    parsed = Parsed(
        write(tmp_path, [result("C4")], {"C4": '{"data": [{"y": [NaN, Infinity, 1e999, 1]}], "layout": 3}'})
    )
    (figure,) = [json.loads(text) for attributes, text in parsed.scripts if "type" in attributes]
    assert figure == {"data": [{"y": [None, None, None, 1]}], "layout": {}}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "no such file"),
        ("{", "cannot be read as JSON"),
        ('{"id": "C4"}', "an object, not a list"),
        ("[3]", "entry 1 is a number, not an object"),
        ('[{"id": "C4"}]', "entry 1 ('C4') lacks claim, scale, holds, checks"),
        (json.dumps([result("C4", holds="yes")]), "holds is a string, not true, false or null"),
        (json.dumps([result("C4", seconds=True)]), "seconds is a boolean, not a number or null"),
        (json.dumps([result("C4", checks=[{}])]), "check 1 lacks text"),
        (json.dumps([result("C4", experiments=[1])]), "experiments should be a list of strings"),
        (json.dumps([result("C4"), result("C4")]), "'C4' occurs more than once"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_invalid_results_are_one_line_that_says_what_to_do(tmp_path, content, found):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=r"results\.json") as caught:
        write_report(tmp_path)
    message = str(caught.value)
    assert found in message
    assert "lowdyn reproduce" in message
    assert "\n" not in message
    assert not (tmp_path / "index.html").exists()


def test_unknown_keys_and_missing_optional_ones_are_fine(tmp_path):
    (tmp_path / "results.json").write_text(
        '[{"id": "C4", "claim": "c", "scale": "s", "holds": true, "checks": [], "new": 1}]'
    )
    (one,) = read_results(tmp_path / "results.json")
    assert (one.verdict, one.experiments, one.reason) == ("holds", (), None)
    assert write_report(str(tmp_path)).is_file()


def test_text_that_is_not_unicode_does_not_stop_the_page(tmp_path):
    assert "This ? is odd" in Parsed(write(tmp_path, [result("C4", claim="This \ud800 is odd")])).text


def test_no_results_are_a_page_too(tmp_path):
    assert "No claim has been run yet." in Parsed(write(tmp_path, [])).text


def test_the_old_page_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    page = write(tmp_path, [result("C4")])
    before = page.read_bytes()
    (tmp_path / "results.json").write_text(json.dumps([result("C5")]))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_report(tmp_path)
    assert page.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "results.json"]
    assert write_report(tmp_path).read_bytes() != before


def test_the_same_results_are_the_same_page(tmp_path):
    page = write(tmp_path, [result("C4")])
    assert page.read_bytes() == write_report(tmp_path).read_bytes()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"),
        (-0.5, "-0.5"),
        (20123.4, "20\u202f123"),
        (9999.7, "1e4"),
        (1e-3, "0.001"),
        (4.5678e-4, "4.568e-4"),
        (1.0e-100, "1e-100"),
        (1e300, "1e300"),
        (float("-inf"), "-∞"),
        (10**20, "1e20"),
    ],
)
def test_numbers(number, text):
    assert format_number(number) == text


def test_long_lists_show_their_ends():
    assert format_value(list(range(57))) == "0, 1, 2, 3, 4, 5, …, 55, 56 (57 values)"
    assert format_value([[1, 2], {"a": None}]) == "(1, 2), a: –"


def test_huge_integers_do_not_stop_the_page(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps([result("C4")]).replace("3.2e-13", "1" + "0" * 5000))
    assert "∞" in Parsed(write_report(tmp_path)).text


def test_importing_the_report_is_cheap():
    code = "import lowdyn.report, sys; print([m for m in ('torch', 'plotly', 'jinja2', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# In a browser

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
QUIET = ["--headless=new", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync", "--force-prefers-reduced-motion", "--window-size=1280,1000"]
SOFTWARE_WEBGL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
# What Chromium itself remarks about plotly's measuring of text and about drawing without a graphics card.
REMARKS = ("willReadFrequently", "GPU stall due to ReadPixels")


@pytest.fixture(scope="module")
def open_browser(tmp_path_factory):
    """Return a function that opens a fresh headless Chromium; all are closed after the module."""
    if not (CHROMIUM.exists() and DRIVER.exists()):
        message = f"the browser tests need {CHROMIUM} and {DRIVER} (Debian: chromium, chromium-driver)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    opened = []

    def open_with(*flags):
        options = ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*QUIET, *flags, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        opened.append(Chrome(options=options, service=Service(str(DRIVER))))
        # Chromium's own start page is not what is looked at.
        opened[-1].get("about:blank")
        opened[-1].get_log("performance")
        return opened[-1]

    yield open_with
    for browser in opened:
        browser.quit()


def wait_for(box):
    """Scroll to a figure and return its state once it is drawn or has failed."""
    box.parent.execute_script("arguments[0].parentElement.scrollIntoView({behavior: 'instant'})", box)
    limit = time.monotonic() + 60
    while box.get_attribute("data-state") not in ("drawn", "failed") and time.monotonic() < limit:
        time.sleep(0.05)
    return box.get_attribute("data-state")


def draw_all(browser, path):
    """Open a page and scroll through it until every figure is drawn or has said why not."""
    browser.get(path.as_uri())
    states = {}
    for box in browser.find_elements("css selector", "[data-figure]"):
        states[box.get_attribute("data-name")] = wait_for(box)
    return states


def assert_no_complaints(browser):
    """Assert that the console is empty but for remarks that Chromium makes by itself."""
    log = [entry["message"] for entry in browser.get_log("browser")]
    assert [message for message in log if not any(remark in message for remark in REMARKS)] == []


def network(browser, method):
    """Return the parameters of all network events of one kind since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [event["params"] for event in events if event["method"] == f"Network.{method}"]


def assert_quiet(browser):
    """Assert that the page logged nothing and asked for nothing but itself."""
    assert_no_complaints(browser)
    urls = {event["request"]["url"].split("#")[0] for event in network(browser, "requestWillBeSent")}
    assert {url for url in urls if not url.startswith(("data:", "blob:"))} == {browser.current_url.split("#")[0]}


def colours(browser, element):
    """Return how many different colours an element shows on the screen."""
    count = """
        const [png, done] = arguments, image = new Image();
        image.onload = () => {
          const canvas = Object.assign(document.createElement("canvas"), {width: image.width, height: image.height});
          const pen = canvas.getContext("2d", {willReadFrequently: true});
          pen.drawImage(image, 0, 0);
          done(new Set(new Uint32Array(pen.getImageData(0, 0, image.width, image.height).data.buffer)).size);
        };
        image.src = `data:image/png;base64,${png}`;
    """
    return browser.execute_async_script(count, element.screenshot_as_base64)


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
    assert len(browser.find_elements("tag name", "script")) == 6
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
