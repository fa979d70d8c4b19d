"""The site builds without a warning, asks nothing of the network, and has every public name."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import lowdyn

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PACKAGES = ("networks", "problems", "dynamics", "observe", "recovery", "lowrank", "data", "plots", "report", "training")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` builds it."""
    for name in ("sphinx", "myst_parser", "furo", "math_core", "sphinx_copybutton"):
        pytest.importorskip(name, reason=f"the site needs {name}: pip install 'lowdyn[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(out)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return out


@pytest.fixture(scope="module")
def documented(site):
    """Names of all objects that have a place in the site."""
    head, _, packed = (site / "objects.inv").read_bytes().partition(b"using zlib.\n")
    assert head
    return {line.split()[0] for line in zlib.decompress(packed).decode().splitlines()}


@pytest.mark.parametrize("package", ["", *PACKAGES])
def test_every_public_name_is_in_the_site(documented, package):
    module = importlib.import_module(f"lowdyn.{package}".rstrip("."))
    places = {name: {f"lowdyn.{name}", f"{module.__name__}.{name}"} for name in module.__all__}
    assert not [name for name, either in places.items() if not either & documented]


def test_no_page_asks_anything_of_the_network(site):
    # What a browser fetches by itself: scripts, styles, pictures, fonts. Links are the reader's own.
    asking = re.compile(
        r"""<(?:script|img|iframe|link)[^>]+(?:src|href)=["'](?:https?:)?//|@import|url\(["']?(?:https?:)?//"""
    )
    for page in [*site.rglob("*.html"), *site.rglob("*.css")]:
        assert not asking.search(page.read_text(encoding="utf-8")), page.name


def test_equations_are_mathml(site):
    page = (site / "reduction.html").read_text(encoding="utf-8")
    assert page.count("<math") > 5
    assert not re.search(r"<script[^>]*mathjax", page, re.IGNORECASE)


def test_every_page_is_in_the_contents():
    contents = re.findall(r"```\{toctree\}.*?```", (DOCS / "index.md").read_text(encoding="utf-8"), re.DOTALL)
    listed = {line for block in contents for line in block.splitlines() if re.fullmatch(r"\w+", line)}
    assert listed == {page.stem for page in DOCS.glob("*.md")} - {"index"} | {"benchmarks", "scale"}


def test_the_picture_is_small_and_draws_nothing_from_elsewhere():
    picture = (DOCS / "picture.svg").read_text(encoding="utf-8")
    assert len(picture) < 200_000
    assert picture.count("http") == 1  # the name of the format
    assert lowdyn.__version__ in (ROOT / "docs" / "citing.md").read_text(encoding="utf-8")
