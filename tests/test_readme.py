"""What README and the pages of docs/ show runs, and prints what they say.

A page is one program: its ```python blocks run in order in one namespace, in an empty folder. An ```output block after
one is what it prints, in full; a ```console block holds ``$ lowdyn …`` commands and what each prints. Three dots stand
for what differs from machine to machine. A page whose optional packages or data are not there is skipped.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from doctest import ELLIPSIS, OutputChecker
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import lowdyn
from lowdyn.data import DataMissing

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
OPTIONAL = {"accelerate", "dask", "joblib", "pandas", "peft", "plotly", "transformers", "typer"}
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ((?:src|tests)/\S+\.py)\n")  # the first line of a block that is a file of the project


class Block(NamedTuple):
    """A piece of code, the line where it stands and what follows it as its output, None if nothing does."""

    kind: str
    code: str
    line: int
    output: str | None


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page that run."""
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    assert len(re.findall(r"^\s*```(?:python|console|output)", text, re.MULTILINE)) == sum(
        one[1] in ("python", "console", "output") for one in found
    ), f"{page.name}: an indented or unclosed block would not be run"
    outputs = {one.start(): one[2] for one in found if one[1] == "output"}
    runnable = []
    for one in found:
        if one[1] in ("python", "console"):
            gap = re.match(r"\s*", text[one.end() :])
            output = outputs.pop(one.end() + gap.end(), None)
            runnable.append(Block(one[1], one[2], text.count("\n", 0, one.start()) + 1, output))
    assert not outputs, f"{page.name}: an output without the code that prints it"
    return runnable


def assert_prints(wanted: str, got: str, where: str) -> None:
    tidy = "".join(f"{line.rstrip()}\n" for line in got.splitlines())
    if not OutputChecker().check_output(wanted, tidy, ELLIPSIS):
        pytest.fail(f"{where} shows\n{wanted}\nbut what comes out is\n{tidy}", pytrace=False)


def run_python(block: Block, page: Path, names: dict[str, object]) -> None:
    where = f"{page.name}, line {block.line},"
    source = "\n" * block.line + block.code  # a traceback names the line of the page
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        exec(compile(source, str(page), "exec"), names)
    # README tells what comes out beside the line that prints it.
    if block.output is not None or page != README:
        assert_prints(block.output or "", stream.getvalue(), where)


def run_console(block: Block, page: Path) -> None:
    from typer.testing import CliRunner

    from lowdyn.cli import app

    commands = re.split(r"^\$ ", block.code, flags=re.MULTILINE)
    assert commands[0] == "", f"{page.name}, line {block.line}: a console block begins with a command"
    for one in commands[1:]:
        command, _, wanted = one.partition("\n")
        program, *arguments = shlex.split(command)
        assert program == "lowdyn", f"{page.name}, line {block.line}: only lowdyn's own commands run here"
        result = CliRunner().invoke(app, arguments)
        assert_prints(wanted, result.output, f"{page.name}, line {block.line}, $ {command}")


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """An empty folder, one thread, no data folder, a terminal of one size; torch's generator is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOWDYN_DATA", raising=False)
    for name, value in {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20231128)  # a page that draws from the global generator has to seed it
        yield tmp_path
    torch.set_num_threads(threads)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_runs(page, alone):
    names: dict[str, object] = {"__name__": "__page__"}
    try:
        for block in blocks(page):
            if FILE.match(block.code):
                continue
            if block.kind == "python":
                run_python(block, page, names)
            else:
                run_console(block, page)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{page.name} needs {error.name}")
    except DataMissing as error:
        pytest.skip(f"{page.name}: {error}")
    if page == README:
        assert (alone / "run.nc").is_file()


def test_a_page_that_says_something_else_fails(alone):
    page = alone / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```output\n3\n```\n")
    with pytest.raises(pytest.fail.Exception, match="comes out is\n2"):
        run_python(blocks(page)[0], page, {})
    page.write_text("```python\nprint(1 + 1)\n```\n")
    with pytest.raises(pytest.fail.Exception, match="comes out is\n2"):
        run_python(blocks(page)[0], page, {})
    page.write_text("text\n\n```output\n3\n```\n")
    with pytest.raises(AssertionError, match="without the code"):
        blocks(page)


@pytest.mark.parametrize("command", ["make reproduce", "make test"])
def test_the_two_commands_are_targets(command):
    assert f"\n{command}" in README.read_text(encoding="utf-8")
    target = command.split()[1]
    assert re.search(rf"^{target}:", (README.parent / "Makefile").read_text(), re.MULTILINE)


def copy_of_the_package(folder):
    """Copy src/ into ``folder``, add the files that the page about a new claim shows, and return the page's blocks."""
    shutil.copytree(
        Path(lowdyn.__file__).parent, folder / "src" / "lowdyn", ignore=shutil.ignore_patterns("__pycache__")
    )
    shown = blocks(ROOT / "docs" / "new_claim.md")
    for block in shown:
        if found := FILE.match(block.code):
            path = folder / found[1]
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.code.removeprefix(found[0]), encoding="utf-8")
    return shown


def test_the_new_claim_of_the_page_is_one(tmp_path):
    assert len(copy_of_the_package(tmp_path)) == 3
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1"}

    def run(*arguments):
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    tested = run("pytest", "-q", "-p", "no:cacheprovider", "tests/test_balance.py")
    assert tested.returncode == 0, tested.stdout
    judged = run("lowdyn.cli", "reproduce", "C28", "--scale", "smoke", "--out", "report")
    assert re.search(r"^C28  holds +Balance of the weights  \(", judged.stdout, re.MULTILINE), judged.stdout
    assert (tmp_path / "report" / "C28" / "figure.json").is_file()
