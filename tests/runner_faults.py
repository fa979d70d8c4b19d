"""Kill `lowdyn reproduce`, or fill its disk, at every file operation; run by test_runner_faults.py.

Each attempt is a fork. After it the same command, started again, must end with the results, the pictures and the
trajectories of the run that was never interrupted. Prints one line of JSON: the operations, what a full disk said, and
the attempts that ended otherwise.
"""

import json
import random
import shutil
import sys
import time
from pathlib import Path

from typer.testing import CliRunner

from lowdyn import cli
from lowdyn.claims import claim as claims
from lowdyn.claims.claim import Check
from lowdyn.runner import Folder
from tests.fake_claims import assert_whole, claim, experiment, read, without_times
from tests.faults import Faults, forked

ONE = experiment(name="one", seeds=2)
CLAIMS = (claim("C1", ONE), claim("C2", ONE, check=lambda _: [Check("never", 1.0, 2.0, None, False)]))


def reproduce(folder, said=None):
    """Run the command in this process; return its exit status, and leave what it said on stderr in ``said``."""
    claims.all_claims = lambda: {one.ID: one for one in CLAIMS}
    result = CliRunner().invoke(cli.app, ["reproduce", "--scale", "smoke", "--out", str(folder)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if said is not None:
        said.write_text(result.stderr)
    return result.exit_code


def ended(folder):
    """What the run left: results without times, pictures, names of trajectories; all of it whole."""
    assert_whole(folder)
    trajectories = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.nc"))
    assert all(Folder(folder).holds(folder / name) for name in trajectories)
    pictures = {path.parent.name: path.read_text() for path in sorted(folder.rglob("figure.json"))}
    drafts = [str(path) for path in folder.rglob("*.tmp")]
    page = (folder / "index.html").is_file()
    return json.dumps([without_times(read(folder / "results.json")), pictures, trajectories, drafts, page])


def kept(folder):
    """Every file that is whole under its own name: what no failure may take away again."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".nc", ".json", ".sha256")}


def attempt(folder, expected, *fatal, kill_after=None):
    """Kill the run at each of ``fatal`` in turn, start it once more; return what is wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    before = {}
    for point in fatal:
        if forked(lambda point=point: (Faults(folder, point), reproduce(folder))[1]) not in (0, 9):
            return "no kill"
        if before.keys() - kept(folder).keys():
            return "lost files"
        before = kept(folder)
    if kill_after is not None:
        forked(lambda: reproduce(folder), kill_after)
    if forked(lambda: reproduce(folder)) != 0:
        return "not resumed"
    return None if ended(folder) == expected else "other results"


def full(folder, expected, point, said):
    """Let the disk be full from an operation on, then run again with room; return what is wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    status = forked(lambda: (Faults(folder, point, full=True), reproduce(folder, said))[1])
    if status != 1:
        return f"exit status {status}"
    before = kept(folder)
    if forked(lambda: reproduce(folder)) != 0:
        return "not resumed"
    if any(path.suffix == ".nc" and path.read_bytes() != content for path, content in before.items()):
        return "runs made again"
    return None if ended(folder) == expected else "other results"


def main(place):
    reproduce(place / "first")  # what is loaded and set up on first use is there for all forks
    folder, said = place / "run", place / "said"

    def count():
        faults = Faults(folder)
        reproduce(folder)
        (place / "counted.json").write_text(json.dumps([faults.names, faults.folders]))

    started = time.perf_counter()
    assert forked(count) == 0
    duration = time.perf_counter() - started
    expected = ended(folder)
    names, folders = json.loads((place / "counted.json").read_text())
    draw = random.Random(0)
    wrong, told = {}, set()
    for point, name in enumerate(names):
        wrong[f"killed at {point}: {name}"] = attempt(folder, expected, point)
        if name in ("write", "fsync"):
            wrong[f"full at {point}: {name}"] = full(folder, expected, point, said)
            told.add(said.read_text().replace(str(folder), "FOLDER"))
    for number in range(5):
        again = [draw.randrange(len(names)) for _ in range(3)]
        wrong[f"again and again {number}"] = attempt(folder, expected, *again)
        wrong[f"moment {number}"] = attempt(folder, expected, kill_after=draw.random() * duration)
    found = {name: what for name, what in wrong.items() if what is not None}
    print(json.dumps({"names": names, "folders": folders, "told": sorted(told), "wrong": found, "of": len(wrong)}))


def once(folder):
    """Run the command and end with its status, and with what it said on stderr."""
    said = folder.parent.with_suffix(".said")
    status = reproduce(folder, said)
    print(said.read_text(), file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main(Path(sys.argv[1])) if len(sys.argv) == 2 else once(Path(sys.argv[2]))
