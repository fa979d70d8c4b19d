"""Files of weights to inspect, in one piece and in shards, and the command that inspects them."""

import json

import safetensors.torch
import torch
from typer.testing import CliRunner

from lowdyn.cli import app
from tests.cases import gaussian


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


def sharded(folder):
    """Two shards and their index, as transformers writes them."""
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    table = {name: names[place % 2] for place, name in enumerate(weights())}
    for file in names:
        save(folder / file, {name: weights()[name] for name, where in table.items() if where == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return folder


def command(*arguments):
    done = CliRunner().invoke(app, ["inspect", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr
