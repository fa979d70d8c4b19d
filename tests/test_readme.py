"""What the README shows runs, and says what comes out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 2
    exec(compile("\n".join(blocks), str(README), "exec"), {})
    first = capsys.readouterr().out.splitlines()[0]
    assert float(first) < 1e-14
    assert (tmp_path / "run.nc").is_file()


@pytest.mark.parametrize("command", ["make reproduce", "make test"])
def test_the_two_commands_are_targets(command):
    assert f"\n{command}" in README.read_text(encoding="utf-8")
    target = command.split()[1]
    assert re.search(rf"^{target}:", (README.parent / "Makefile").read_text(), re.MULTILINE)
