"""Report pages to look at: results, figures and hostile text; a parser, and headless Chromium, to look with."""

import json
import os
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lowdyn.plots import Series, curves, embeddings, layer_curves, surfaces
from lowdyn.report import write_report

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
        "times": {"evolution": 2.5},
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
        difference=IMAGE,
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
    return len(set(pixels(browser, element)[0]))


def pixels(browser, element):
    """Return the colours (as whole numbers, line by line) that an element shows on the screen, and its width."""
    read = """
        const [png, done] = arguments, image = new Image();
        image.onload = () => {
          const canvas = Object.assign(document.createElement("canvas"), {width: image.width, height: image.height});
          const pen = canvas.getContext("2d", {willReadFrequently: true});
          pen.drawImage(image, 0, 0);
          const found = pen.getImageData(0, 0, image.width, image.height).data.buffer;
          done([[...new Uint32Array(found)], image.width]);
        };
        image.src = `data:image/png;base64,${png}`;
    """
    return browser.execute_async_script(read, element.screenshot_as_base64)
