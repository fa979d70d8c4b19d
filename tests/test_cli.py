"""The command: its exit status, the verdicts that it prints, and what it offers."""

import re
import subprocess
import sys

import pytest

from lowdyn import __version__
from lowdyn.claims.claim import all_claims
from lowdyn.report.measured import read_measured
from tests.commands import lowdyn, refused
from tests.fake_claims import read

pytestmark = pytest.mark.usefixtures("no_data_folder")


# --- verdicts on four fake claims -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "verdicts"),
    [
        (["C1"], 0, ["C1   holds"]),
        (["C3"], 0, ["C3   does not hold"]),
        (["C10"], 0, ["C10  cannot"]),
        (["C2"], 1, ["C2   error"]),
        (["C1", "--strict"], 0, ["C1   holds"]),
        (["C3", "--strict"], 1, ["C3   does not hold"]),
        (["C10", "--strict"], 0, ["C10  cannot"]),
        (["c3", "C1", "C1"], 0, ["C1   holds", "C3   does not hold"]),
        ([], 1, ["C1   holds", "C2   error", "C3   does not hold", "C10  cannot"]),
    ],
)
def test_exit_status_and_verdicts(fakes, folder, arguments, status, verdicts):
    for _ in range(2):  # the second time from what is complete
        result = lowdyn("reproduce", *arguments, "--out", folder)
        assert result.exit_code == status
        printed = [line for line in result.stdout.splitlines() if re.match(r"C\d", line)]
        assert [line[: len(verdict)] for line, verdict in zip(printed, verdicts, strict=True)] == verdicts
        assert result.stdout.endswith(f"report: {folder / 'index.html'}\n")
        assert result.stderr == ""
    assert [entry["id"] for entry in read(folder / "results.json")] == [line.split()[0] for line in verdicts]
    assert (folder / "index.html").exists()


def test_reasons_are_printed_below_the_verdict(fakes, folder):
    lines = lowdyn("reproduce", "--out", folder).stdout.splitlines()
    for title, reason in {
        "Broken": "     RuntimeError: out of luck",
        "False": "     value: 1, expected ≤ 0.5",
        "Without data": "     mnist (train): no data folder; pass folder= (on the command line --data-dir)",
    }.items():
        (place,) = (number for number, line in enumerate(lines) if title in line)
        assert lines[place + 1].startswith(reason)


# --- what it offers -------------------------------------------------------------------------------------------


def test_list_names_every_claim():
    printed = lowdyn("list").stdout
    assert "\x1b" not in printed
    for name, claim in all_claims().items():
        assert re.search(rf"^{name} +{claim.PART} +{re.escape(claim.TITLE)} ", printed, re.MULTILINE)


def test_list_says_what_is_estimated_and_by_which_command():
    estimates = [name for name, runs in read_measured().items() if "paper" in runs and runs["paper"].holds is None]
    printed = lowdyn("list").stdout
    assert sorted(re.findall(r"^(C\d+) .*≈ [\d.]+ (?:s|min|h|days) *$", printed, re.MULTILINE)) == sorted(estimates)
    assert ("benchmarks/estimates.py" in printed) == bool(estimates)


def test_list_says_one_claim_in_full():
    claim = all_claims()["C14"]
    printed = lowdyn("list", "c14").stdout
    for name in ("TITLE", "CLAIM", "SOURCE", "PUBLISHED", "DEVIATION", "DIFFERENCE", "SCALE_NOTE"):
        assert getattr(claim, name)
        assert getattr(claim, name) in printed
    assert "C15" not in printed
    assert "unknown claim C99" in refused("list", "C99")


def test_list_does_not_load_torch():
    code = (
        "import sys; sys.argv = ['lowdyn', 'list']\nfrom lowdyn.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    )
    code += "print([name for name in ('torch', 'xarray', 'lowdyn.claims.claim') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_help_names_every_option():
    offered = lowdyn("reproduce", "--help").stdout
    for option in (
        "--scale",
        "--out",
        "--seed",
        "--data-dir",
        "--download",
        "--strict",
        "--jobs",
        "--cluster",
        "[ids]...",
    ):
        assert option in offered
    assert "DIR" in lowdyn("report", "--help").stdout
    for command in ("reproduce", "list", "report"):
        assert command in lowdyn("--help").stdout


def test_version():
    assert lowdyn("--version").stdout == f"lowdyn {__version__}\n"


def test_no_command_is_bad_usage():
    assert lowdyn().exit_code == 2
