"""Killed, or out of room, at every file operation of the command: what was complete stays, and the rest follows."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def attempts(tmp_path_factory):
    # In memory where that is possible: a kill loses nothing that was not synced, and each sync of a disk takes 20 ms.
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else tmp_path_factory.mktemp("faults")
    with tempfile.TemporaryDirectory(dir=place) as folder:
        command = [sys.executable, "-m", "tests.runner_faults", folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_or_full_at_every_operation_it_ends_as_if_it_had_never_been(attempts):
    assert attempts["wrong"] == {}
    filled = [name for name in attempts["names"] if name in ("write", "fsync")]
    assert attempts["of"] == len(attempts["names"]) + len(filled) + 5 + 5


def test_a_full_disk_is_one_line(attempts):
    assert attempts["told"] == [
        "lowdyn: cannot write to FOLDER: No space left on device; what is complete there is kept: put this right and "
        "run the same command again\n"
    ]


def test_every_file_and_its_name_are_on_the_disk_before_the_next_is_written(attempts):
    """Written, synced, replaced, its draft gone, and the folder that holds its name synced; then the next."""
    steps = list(zip(attempts["names"], attempts["folders"], strict=True))
    files = " ".join(f"{name}{'s' if folder else ''}" for name, folder in steps if name != "mkdir").split("write ")[1:]
    # The marker; two runs and a trajectory, each after its checksum; two pictures, two results; the page.
    assert len(files) == 1 + 2 * (2 + 1) + 2 + 2 + 1
    for steps_of_one in files[:-1]:
        assert steps_of_one.split()[:4] == ["fsync", "replace", "unlink", "fsyncs"]


def test_a_disk_that_is_really_full(tmp_path):
    """A file system of 192 KiB, in name spaces of its own: the runs fit, the page does not; then it grows."""
    script = """
mount -t tmpfs -o size=192k none "$1" || exit 77
"$2" -m tests.runner_faults once "$1/out"; echo "status $?"
cp -r "$1/out" "$3"; mount -o remount,size=64m "$1"
"$2" -m tests.runner_faults once "$1/out"; echo "status $?"
cp -r "$1/out" "$4"
"""
    (tmp_path / "mount").mkdir()
    places = [tmp_path / "mount", sys.executable, tmp_path / "full", tmp_path / "after"]
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *map(str, places)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no file system can be mounted here")
    assert re.findall(r"^status \d", done.stdout, re.MULTILINE) == ["status 1", "status 0"]
    assert re.search(r"^lowdyn: cannot write to .*: No space left on device; .*kept", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
    assert (tmp_path / "after" / "index.html").is_file()
    assert not (tmp_path / "full" / "index.html").exists()
    kept = [path.relative_to(tmp_path / "full") for path in (tmp_path / "full").rglob("*.nc")]
    assert len(kept) == 3
    for name in kept:  # not made again
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "full" / name).read_bytes()
