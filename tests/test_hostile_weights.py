"""Hostile files of weights are refused in one line, and nothing runs."""

import json
import os
import pickle
import re
import zipfile

import pytest
import torch
from torch import nn

from lowdyn.inspection import inspect_weights
from lowdyn.weight_files import open_weights
from tests.test_tensor_files import HOSTILE
from tests.weight_files import command, save, sharded, weights


class Hostile:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def pickled(folder, trace):
    (folder / "w.pt").write_bytes(pickle.dumps(Hostile(trace)))


def archived(folder, trace):
    torch.save({"w": torch.ones(2, 2), "x": Hostile(trace)}, folder / "w.pt")


def pickled_as_safetensors(folder, trace):
    (folder / "w.safetensors").write_bytes(pickle.dumps(Hostile(trace)))


def script(folder, trace):
    torch.jit.script(nn.Linear(2, 2)).save(str(folder / "w.pt"))


def legacy(folder, trace):
    torch.save({"w": torch.ones(2, 2)}, folder / "w.pt", _use_new_zipfile_serialization=False)


def truncated(folder, trace):
    torch.save({"w": torch.ones(200, 200)}, folder / "w.pt")
    os.truncate(folder / "w.pt", 80_000)


def compressed(folder, trace):
    torch.save({"w": torch.ones(2, 2)}, folder / "w.pt")
    with zipfile.ZipFile(folder / "w.pt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def expanded(folder, trace):
    torch.save({"w": torch.ones(1).expand(10**6, 10**6)}, folder / "w.pt")


def no_state(folder, trace):
    torch.save([torch.ones(2, 2)], folder / "w.pt")


def index_to(name):
    def write(folder, trace):
        save(folder.parent / "outside.safetensors", weights())
        save(folder / "a.safetensors", weights())
        table = {"weight_map": {"embed.weight": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(table))

    return write


def index_of(content):
    def write(folder, trace):
        (folder / "model.safetensors.index.json").write_text(content)

    return write


CASES = {
    "a pickle": (pickled, "a pickle, which could run anything when read"),
    "a pickle named safetensors": (pickled_as_safetensors, "a pickle, which could run anything when read"),
    "an archive that runs": (archived, r"refused: it asks for posix\.mkdir"),
    "TorchScript": (script, "no archive of a state_dict"),
    "an old archive": (legacy, "a pickle, which could run anything when read"),
    "a truncated archive": (truncated, "no archive of a state_dict"),
    "a compressed archive": (compressed, "it is compressed"),
    "a tensor larger than its file": (expanded, "'w' claims more values than the file holds"),
    "no state_dict": (no_state, "it holds a list, not a state_dict"),
    "an index that leaves the folder": (index_to("../outside.safetensors"), "'../outside.safetensors', which is no"),
    "an absolute index": (index_to("/etc/passwd"), "'/etc/passwd', which is no safetensors file beside it"),
    "an index with a backslash": (index_to("..\\a.safetensors"), "which is no safetensors file beside it"),
    "an index that hides a line": (index_to("a.safetensors\n"), "which is no safetensors file beside it"),
    "an index to a missing file": (index_to("b.safetensors"), "No such file"),
    "an index to nothing": (index_of("{}"), "it has no weight_map"),
    "an index of numbers": (index_of('{"weight_map": {"w": 3}}'), "does not name a file for each tensor"),
    "an index that is a list": (index_of("[]"), "it has no weight_map"),
    "an index that is no JSON": (index_of("{"), "no index of shards"),
    "a deep index": (index_of("[" * 100_000), "no index of shards"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_hostile_file_is_refused_in_one_line_and_runs_nothing(tmp_path, case):
    folder, trace = tmp_path / "model", tmp_path / "trace"
    folder.mkdir()
    write, reason = CASES[case]
    write(folder, trace)
    with pytest.raises((ValueError, OSError), match=reason) as error:
        inspect_weights(folder)
    assert "\n" not in str(error.value)
    assert not trace.exists()


def test_a_name_that_the_shard_lacks_is_said(tmp_path):
    sharded(tmp_path)
    table = {"weight_map": {"w": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r"'w' is not in model-00001-of-00002.safetensors"):
        open_weights(tmp_path)


@pytest.mark.parametrize("case", [*CASES, *HOSTILE])
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_the_command_refuses_in_one_line(tmp_path, case):
    folder, trace = tmp_path / "model", tmp_path / "trace"
    folder.mkdir()
    if case in CASES:
        CASES[case][0](folder, trace)
    else:
        (folder / "model.safetensors").write_bytes(HOSTILE[case][0])
    code, shown, errors = command(folder)
    assert (code, shown) == (2, "")
    assert re.fullmatch(r"lowdyn: [^\n]+\n", errors)
    assert not trace.exists()


def test_names_never_command_the_terminal(tmp_path):
    path = save(tmp_path / "w", {"a\x1b[2Jb.weight": torch.eye(3), "[red]c[/red].weight": torch.eye(3)})
    code, shown, _ = command(path)
    assert code == 0
    assert "\x1b" not in shown
    assert "a\\x1b[2Jb" in shown
    assert "[red]c[/red]" in shown
