"""The table of benchmarks is made from records alone, and every benchmark names its yardstick and limit."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from lowdyn.data import load_set
from lowdyn.networks.pretrained import pretrained_vit
from lowdyn.report.results import Result

ROOT = Path(__file__).resolve().parents[1]
OTHERS = ("timing", "tables", "claims_table", "estimates", "evidence")
SCRIPTS = [path for path in sorted((ROOT / "benchmarks").glob("*.py")) if path.stem not in OTHERS]
JUDGED = [path for path in SCRIPTS if path.stem != "rounding"]  # which only says how far stored runs are off


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tables():
    return loaded("tables")


@pytest.fixture
def claims_table(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as for a script there, which imports the one beside it
    return loaded("claims_table")


def record(**values):
    given = {"script": "a.py", "name": "step", "short": None, "yardstick": "a | b", "ratio": 0.25, "limit": 0.5}
    given |= {"machine": "A processor, 2 cores", "date": "2026-01-02"}
    return {**given, "kept": values.get("ratio", 0.25) <= 0.5, **values}


def test_the_page_says_what_was_measured_where_and_what_was_not_kept(tables):
    page = tables.as_page([record(), record(name="pass", ratio=0.75, date="2026-01-01")])
    assert "`benchmarks/run`, not by hand, on A processor, 2 cores (2026-01-01 to 2026-01-02)." in page
    assert "| a.py | step | a \\| b | 1/4.0 | 0.5 | yes |" in page
    assert "| a.py | pass | a \\| b | 0.75 | 0.5 | **no** |" in page
    text = tables.as_text([record(), record(name="pass", ratio=0.75)])
    assert [line.endswith("NOT KEPT") for line in text.splitlines()[:3]] == [False, False, True]


def test_readme_takes_the_lines_that_are_named_shortly_or_all_of_a_script(tables):
    records = [record(short="a step"), record(name="other"), record(script="b.py", name="one"), record(script="b.py")]
    where, _, *lines = tables.for_readme(records).splitlines()
    assert where.endswith("; measured on A processor, 2 cores (2026-01-02).")
    rows = lines[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| `a.py`: a step", "| `b.py`: one", "| `b.py`: step"]


def test_a_table_is_replaced_between_its_markers_and_nowhere_else(tables):
    text = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"
    once = tables.replaced(text, "| new |")
    assert once == f"before\n{tables.BEGIN}\n\n| new |\n\n{tables.END}\nafter\n"
    assert tables.replaced(once, "| new |") == once
    for broken in ("nothing", text + text, f"{tables.END}{tables.BEGIN}"):
        with pytest.raises(ValueError, match="the table needs one line"):
            tables.replaced(broken, "| new |")


def test_readme_has_the_markers(tables):
    assert tables.replaced((ROOT / "README.md").read_text(encoding="utf-8"), "| new |").count("| new |") == 1


def test_ratios_are_short(tables):
    given = {1.083: "1.08", 0.5: "0.50", 0.156: "1/6.4", 1 / 33: "1/33", 1 / 14123: "1/14 000", 0.0: "0"}
    assert {ratio: tables.ratio_text(ratio) for ratio in given} == given


def test_a_report_goes_to_the_file_of_records(tmp_path, monkeypatch, capsys):
    path = tmp_path / "records"
    monkeypatch.setenv("LOWDYN_BENCHMARK_RECORDS", str(path))
    monkeypatch.setattr(sys, "argv", ["some/folder/a.py"])
    report = loaded("timing").report
    assert report("step", "a | b", 0.25, 0.5)
    assert not report("pass", "a | b", 0.75, 0.5, "a pass")
    found = [json.loads(line) for line in path.read_text().splitlines()]
    where = record().keys() - found[0].keys()
    assert where == {"machine", "date"}  # which benchmarks/run adds
    assert [one | {name: record()[name] for name in where} for one in found] == [
        record(),
        record(name="pass", ratio=0.75, short="a pass"),
    ]
    assert capsys.readouterr().out.startswith("ok   step: 0.25 x a | b (at most 0.5)\nFAIL")


@pytest.mark.parametrize("path", JUDGED, ids=lambda path: path.stem)
def test_every_benchmark_names_its_yardstick_and_limit(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    reports = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "report"]
    assert reports
    for call in reports:
        assert len(call.args) >= 4, f"{path.name}:{call.lineno}"
        assert not (isinstance(call.args[1], ast.Constant) and call.args[1].value in ("", "none"))
    assert any(len(call.args) > 4 for call in reports), f"{path.name} names no line for README"


def test_the_table_of_claims_in_the_readme_is_that_of_the_kept_results(claims_table):
    kept = {
        folder: claims_table.read_results(ROOT / "docs" / "results" / folder / "results.json")
        for folder in claims_table.COLUMNS.values()
    }
    assert claims_table.as_table(kept) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_claim_that_does_not_hold_says_why_in_the_table(claims_table):
    results = [
        Result("C10", "it falls", "quick", False, (), title="Falling", reason="rate: 0.9, expected ≤ 0.5"),
        Result("C2", "it rises", "quick", True, (), title="Rising"),
    ]
    lines = claims_table.as_table({"quick": results, "quick-digits": [], "paper": results[:1]}).splitlines()
    assert lines[2:] == [
        "| C2 Rising | holds |  |  |",
        "| C10 Falling | **no**: rate: 0.9, expected ≤ 0.5 |  | **no**: rate: 0.9, expected ≤ 0.5 |",
    ]


def test_a_whole_run_is_estimated_from_short_ones():
    def seconds(settings):
        return 5 + 2 * settings["epochs"] + 0.5 * settings["usps_epochs"]

    short, longer = {"epochs": 1, "usps_epochs": 2}, {"epochs": 3, "usps_epochs": 6}
    full = {"epochs": 400, "usps_epochs": 60.5}
    assert loaded("estimates").estimated(seconds, short, longer, full) == pytest.approx(seconds(full))


def test_a_longer_run_that_took_no_longer_is_refused():
    with pytest.raises(RuntimeError, match="epochs 3 took no longer than 1"):
        loaded("estimates").estimated(lambda settings: 5.0, {"epochs": 1}, {"epochs": 3}, {"epochs": 400})


def test_shortened_runs_are_of_paper_scale_and_shorter():
    estimates = loaded("estimates")
    experiments = {one.name: one for claim in estimates.all_claims().values() for one in claim.EXPERIMENTS}
    for name, short in estimates.SHORT.items():
        for cell in experiments[name].plans["paper"].cells:
            assert {*short.settings} - {"lr"} <= cell.keys()
            assert all(short.settings[length] < longer < cell[length] for length, longer in short.longer.items())
            assert short.like(short.like(cell)) == short.like(cell)


@pytest.mark.parametrize(("name", "epochs"), [("real", 70), ("heads", 7 * 753 / 100)])
def test_an_epoch_is_counted_in_images(name, epochs):
    estimates = loaded("estimates")
    sweep = estimates.Sweep(name, [], [0], [], [load_set("digits")], {})
    cell, settings = {"samples": 1000, "epochs": 7}, {"samples": 100, "epochs": 1}
    short = estimates.Short(settings, {"epochs": 3})
    assert estimates.full_lengths(sweep, cell, short, settings) == {"epochs": epochs}


def test_steps_are_counted_as_they_are():
    estimates = loaded("estimates")
    short = estimates.Short({"steps": 1}, {"steps": 3}, full=lambda cell, sets: {"steps": cell["width"] * len(sets)})
    sweep = estimates.Sweep("completion", [], [0], [], ["one"], {})
    assert estimates.full_lengths(sweep, {"steps": 9, "width": 5}, short, {"steps": 1}) == {"steps": 5}


def test_a_whole_run_of_adapters_is_counted_from_one_at_one_rate_in_steps_of_eight_images():
    """Two sets, three rates, 3 000 steps of 64 images; a fifth of the training images judges each rate."""
    sets = (range(20_000), range(5_000), range(10_000), range(2_000), "weights")
    cell = {"adapted": 50_000, "steps": 3000, "tested": 10_000}
    tested = 3 * 4_000 + 5_000 + 3 * 2_000 + 2_000
    assert loaded("estimates")._adapted(cell, sets) == {"steps": 2 * 3 * 3000 * 64 / 8, "tested": tested}


def test_random_weights_stand_for_the_checkpoint_that_is_missing(tmp_path):
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "held").touch()
    (tmp_path / "vit-b-16").mkdir()
    (tmp_path / "vit-b-16" / "config.json").write_bytes(b"of a checkpoint whose weights are still to come")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    digests = []
    for _ in range(2):
        with loaded("estimates").random_vit(tmp_path, **sizes, image_size=8, patch_size=4) as folder:
            weights = load_set("vit_b_16", folder)
            digests.append(weights.sha256)
            assert pretrained_vit(weights.path, 10, generator=torch.Generator()).image == (8, 8, 3)
            assert (folder / "cifar10" / "held").is_file()
        assert not folder.exists()
    assert digests[0] == digests[1]
    # The folder itself is left as it was.
    files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert [path.relative_to(tmp_path).as_posix() for path in files] == ["cifar10/held", "vit-b-16/config.json"]
    assert [path.read_bytes() for path in files] == [b"", b"of a checkpoint whose weights are still to come"]


def test_an_estimate_made_beside_other_work_is_called_an_upper_bound():
    crowded = loaded("estimates").crowded
    assert crowded(100.0, 41.0, 1) == "beside other work, with 41% of a processor a thread: an upper bound"
    assert crowded(100.0, 90.0, 1) == crowded(100.0, 150.0, 2) == ""


def test_an_estimate_from_random_weights_says_so(monkeypatch, tmp_path):
    estimates = loaded("estimates")
    claim = estimates.all_claims()["C15"]
    sets = [load_set("digits"), estimates.PretrainedViT(tmp_path, "0" * 64)]
    sweep = estimates.Sweep("adapt-vit", [], [0], [], sets, {})
    monkeypatch.setattr(estimates, "crowded", lambda wall, processor, threads: "")
    monkeypatch.setattr(estimates, "time_experiment", lambda experiment, run: (123.0, "adapt-vit with steps 2", sweep))
    drawn, read = (estimates.estimate(claim, None, random=random) for random in (True, False))
    assert (drawn["how"], drawn["data"]["name"]) == ("adapt-vit with steps 2, random weights", "digits")
    assert (read["how"], read["data"]["name"]) == ("adapt-vit with steps 2", "digits + vit_b_16")
    assert drawn["seconds"] == 120
    assert [name for name, one in estimates.all_claims().items() if estimates.reads_vit(one)] == ["C2", "C15"]
