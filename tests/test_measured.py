import json
from dataclasses import asdict, replace

import pytest
from rich.console import Console

from lowdyn.claims.catalogue import catalogue
from lowdyn.claims.claim import all_claims
from lowdyn.experiments import experiment
from lowdyn.report import measured
from lowdyn.report.measured import Measured, collect, compare, read_measured
from lowdyn.report.page import PARTS
from lowdyn.report.results import SCALES, Result, Scale
from lowdyn.report.table import claim_in_full, claims_legend, claims_table

PAPER = Measured(7500.0, True, "", "2 cores")
ESTIMATE = Measured(11_000.0, None, "", "2 cores", "epochs 1 and 5")
ENTRY = {"seconds": 11_000.0, "how": "epochs 1 and 5", "machine": {"cores": 2}, "data": None}


def one(name, scale="smoke", holds=True, **values):
    return Result(name, "It moves.", scale, holds, (), seconds=1.2345, machine={"cores": 2}, **values)


def test_the_shipped_times_are_of_claims_that_exist():
    for name, runs in read_measured().items():
        assert name in catalogue()
        assert set(runs) <= set(SCALES)
        assert all(run.seconds >= 0 and run.machine for run in runs.values())
        assert all((run.holds is None) == bool(run.how) for run in runs.values())
        assert all(run.holds is not None for scale, run in runs.items() if scale != "paper")


def test_the_scales_are_those_of_the_experiments():
    assert tuple(SCALES) == tuple(Scale) == experiment.SCALES


def test_the_catalogue_says_what_the_claims_say():
    claims = all_claims()
    assert list(catalogue()) == list(claims)
    for name, texts in catalogue().items():
        for field in ("part", "title", "claim", "source", "published", "deviation", "difference", "scale_note"):
            assert getattr(texts, field) == getattr(claims[name], field.upper())
        assert texts.part in {part.key for part in PARTS if part.key}


def test_results_become_times():
    found = collect([one("C10", holds=False), one("C2", "paper"), one("C2"), one("C3", holds=None)])
    assert list(found) == ["C2", "C10"]
    assert list(found["C2"]) == ["smoke", "paper"]
    assert found["C10"]["smoke"] == {"seconds": 1.23, "holds": False, "data": "", "machine": "2 cores"}


def test_estimates_stand_where_nothing_was_measured_at_paper_scale():
    found = collect([one("C2"), one("C3", "paper")], {"C1": ENTRY, "C2": ENTRY, "C3": ENTRY})
    assert [(name, list(runs)) for name, runs in found.items()] == [
        ("C1", ["paper"]),
        ("C2", ["smoke", "paper"]),
        ("C3", ["paper"]),
    ]
    assert found["C2"]["paper"] == found["C1"]["paper"] == asdict(ESTIMATE)
    assert found["C3"]["paper"]["holds"] is True


def test_an_estimate_is_shown_as_one_and_without_a_verdict():
    claim = catalogue()["C2"]
    console = Console(width=160, highlight=False)
    with console.capture() as said:
        console.print(claims_table([claim], {"C2": {"smoke": PAPER, "paper": ESTIMATE}}))
    assert said.get().split()[-6:] == ["min", "holds", "—", "≈", "3.1", "h"]
    assert "≈ 3.1 h, not run: from epochs 1 and 5 (no data; 2 cores)" in claim_in_full(claim, {"paper": ESTIMATE})
    legend = claims_legend({"C2": {"smoke": PAPER, "paper": replace(ESTIMATE, machine="1 core")}})
    assert "as measured (2 cores); ≈" in legend
    assert "`python benchmarks/estimates.py` (1 core)" in legend
    assert "≈" not in claims_legend({"C2": {"smoke": PAPER}})


@pytest.mark.parametrize(
    ("results", "said"), [([one("C2"), one("C2")], "occurs twice"), ([one("C2", "vast")], "not one of smoke")]
)
def test_results_that_do_not_go_together_are_refused(results, said):
    with pytest.raises(ValueError, match=said):
        collect(results)


def test_the_script_writes_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measured, "__file__", str(tmp_path / "measured.py"))
    results = [{"id": "C4", "claim": "c", "scale": "paper", "holds": True, "checks": [], "seconds": 2}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "estimates.json").write_text(json.dumps({"C3": ENTRY, "C4": ENTRY}))
    measured.main([str(tmp_path / "results.json"), str(tmp_path / "estimates.json")])
    written = json.loads((tmp_path / "measured.json").read_text())
    assert written["C4"]["paper"]["seconds"] == 2.0
    assert written["C3"]["paper"] == asdict(ESTIMATE)
    assert "paper 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("result", "runs", "kind", "said"),
    [
        (one("C4"), {"paper": PAPER}, "same", "same verdict"),
        (one("C4", holds=False), {"paper": PAPER}, "differs", "no explanation is known"),
        (one("C4", holds=False, scale_note="too short a run"), {"paper": PAPER}, "differs", "Too short a run."),
        (one("C4"), {"smoke": PAPER}, "unknown", "not been judged"),
        (one("C4"), {"paper": ESTIMATE}, "unknown", "not been judged"),
        (one("C4", holds=False, scale_note="too short a run"), {}, "unknown", "judged yet. Too short a run."),
    ],
)
def test_a_verdict_is_held_against_that_at_paper_scale(result, runs, kind, said):
    comparison = compare(result, runs)
    assert comparison.kind == kind
    assert said in comparison.text
    assert ("2 h 05 min" in comparison.text) == (runs.get("paper") is PAPER)


def test_nothing_is_compared_at_paper_scale_or_without_a_verdict():
    assert compare(one("C4", "paper"), {"paper": PAPER}) is None
    assert compare(one("C4", holds=None), {"paper": PAPER}) is None
