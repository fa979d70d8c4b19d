import base64
import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

from lowdyn.report import write_report
from lowdyn.report.formats import format_number, format_value
from lowdyn.report.results import is_simple_name, read_results
from tests.pages import HOSTILE, Parsed, lines_figure, result, write


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


def test_the_runs_can_be_had_beside_the_picture(page):
    shown = page.read_text(encoding="utf-8")
    (caption,) = re.findall(r"<figcaption>(?:(?!</figcaption>).)*_caption:C4.*?</figcaption>", shown, re.DOTALL)
    assert '<a href="evolution/trajectory.nc" download>evolution/trajectory.nc</a>' in caption
    assert "3 KiB" in caption
    (caption,) = re.findall(r"<figcaption>(?:(?!</figcaption>).)*_caption:C15.*?</figcaption>", shown, re.DOTALL)
    assert "netCDF" not in caption  # it has none here


def test_plotly_is_embedded_once_and_no_hostile_script_is(page, parsed):
    code = [text for attributes, text in parsed.scripts if attributes.get("type") != "application/json"]
    assert len(code) == 5
    assert sum("Plotly, Inc." in text[:500] for text in code) == 1
    assert len(parsed.scripts) == 5 + 4


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


def test_a_claim_says_where_its_numbers_differ_and_is_silent_where_none_does(tmp_path):
    shown = write(tmp_path, [result("C4", difference="Ours is 2, theirs 1."), result("C5", difference="")])
    assert shown.read_text(encoding="utf-8").count("Where our numbers differ") == 1
    assert "Ours is 2, theirs 1." in Parsed(shown).text


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
    claims = [attributes["id"] for attributes in parsed.all("article")]
    assert claims == ["C1", "C4", "C9", "C15", "C17", "C27"]
    used = [attributes["href"].removeprefix("#_") for attributes in parsed.all("use")]
    assert {"holds", "fails", "cannot", "error"} <= set(used)


def test_text_of_every_part_is_there(parsed):
    text = " ".join(parsed.text.split())
    for part in (
        "3 of 6 claims hold, 1 does not, 1 cannot be judged, 1 ended in an error",
        "This is what C4 claims.",
        "A paper, Figure 1",
        "2r = 6 directions move",
        "Cannot: there is no checkpoint.",
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
    assert len(parsed.scripts) == 5
    assert {attributes["href"] for attributes in parsed.all("a")} == {
        "#_start",
        "#_part:other",
        "#claim-1",
        "results.json",
    }
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
        (json.dumps([result("C4", times={"evolution": "long"})]), "times should be numbers"),
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


def test_what_the_machines_have_in_common_stands_below_and_the_rest_with_each_claim(tmp_path):
    """As --jobs leaves it: what reads a clock is run with all threads, the rest with a share of them."""
    machine = {"system": "Linux", "cores": 7, "threads": 7}
    results = [result("C4", machine=machine), result("C12", machine={**machine, "threads": 3})]
    page = write(tmp_path, [{**one, "versions": {"torch": f"{k}.0"}} for k, one in enumerate(results)])
    text = " ".join(Parsed(page).text.split())
    body, footer = text.split("Where all of this ran")
    assert footer.endswith("Machine systemLinux cores7")
    assert "all runs added; 7 cores" in body
    assert [body.count(f"Machine, where not all claims agree threads{count}") for count in (7, 3)] == [1, 1]
    assert [body.count(f"Versions, where not all claims agree torch{k}.0") for k in (0, 1)] == [1, 1]
    page = write(tmp_path, [{**one, "machine": machine} for one in results])
    assert "Machine, where" not in Parsed(page).text


def test_an_experiment_that_claims_share_takes_its_time_once(tmp_path):
    shared = {"theorem-large-square": 100.0}
    results = [
        result("C5", seconds=130.0, times={"theorem-square": 30.0, **shared}),
        result("C7", seconds=105.0, times={"theorem-scales": 5.0, **shared}),
        result("C27", None, reason="error: MemoryError", seconds=60.0, times={}),
    ]
    assert "3 min 15 s, all runs added" in Parsed(write(tmp_path, results)).text


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
