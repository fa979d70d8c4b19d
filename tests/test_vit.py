"""The small transformer against torch's own encoder layer and convolution."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lowdyn import layer_metrics
from lowdyn.data import load_images
from lowdyn.networks import SmallViT, orthogonal
from lowdyn.observe.matrices import weight_matrices
from tests.cases import gaussian, seeded

pytestmark = pytest.mark.usefixtures("nothing_global_changes")

IMAGE = (8, 12, 3)


def small(**options):
    return SmallViT(IMAGE, 5, width=16, depth=2, generator=seeded(), **options).double()


def torch_block(block):
    """The same block as torch's encoder layer, weights and all."""
    with torch.random.fork_rng(devices=[]):
        layer = nn.TransformerEncoderLayer(
            16, block.heads, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
        )
    attention = (block.query, block.key, block.value)
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(torch.cat([one.weight for one in attention]))
        layer.self_attn.in_proj_bias.copy_(torch.cat([one.bias for one in attention]))
    pairs = [
        (layer.self_attn.out_proj, block.mixed),
        (layer.linear1, block.expand),
        (layer.linear2, block.contract),
        (layer.norm1, block.norm1),
        (layer.norm2, block.norm2),
    ]
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    return layer


def shaken(model):
    """Every parameter drawn anew, so that none is left out by being zero or one."""
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(0.3 * gaussian(*parameter.shape, seed=index))
    return model


@pytest.mark.parametrize("heads", [1, 4])
def test_a_block_is_torchs_encoder_layer(heads):
    block, tokens = shaken(small(heads=heads)).block1, gaussian(3, 7, 16)
    assert_close(block(tokens), torch_block(block)(tokens))


def test_the_whole_is_patches_blocks_and_classifier():
    model, images = shaken(small()), gaussian(3, *IMAGE)
    height, width, channels = IMAGE
    with torch.no_grad():
        # A patch is a row of pixels (row, column, channel); a convolution's weight is (out, channel, row, column).
        kernel = model.patches.weight.reshape(16, 4, 4, channels).permute(0, 3, 1, 2)
        maps = nn.functional.conv2d(images.permute(0, 3, 1, 2), kernel, model.patches.bias, stride=4)
        tokens = torch.cat([model.class_token.expand(3, -1, -1), maps.flatten(2).mT], dim=1) + model.positions
        for block in (model.block1, model.block2):
            tokens = torch_block(block)(tokens)
        expected = model.output(model.norm(tokens)[:, 0])
    assert_close(model(images), expected)
    assert_close(model(images.reshape(3, height * width * channels)), expected)


def test_it_takes_the_rows_of_an_image_set():
    images = load_images("digits").take(10)
    model = SmallViT((8, 8, 1), 10, width=16, depth=1, patch=2, generator=seeded())
    assert model(torch.from_numpy(images.features())).shape == (10, 10)
    assert model.positions.shape == (1, 17, 16)


def test_everything_comes_from_the_generator():
    first, again, other = (
        SmallViT(IMAGE, 5, width=16, depth=2, generator=seeded(seed)).state_dict() for seed in (0, 0, 1)
    )
    for name, value in first.items():
        assert_close(value, again[name], rtol=0, atol=0)
    assert not torch.equal(first["block1.query.weight"], other["block1.query.weight"])
    assert not torch.equal(first["positions"], other["positions"])


def test_a_start_is_that_of_every_weight():
    model = small(start=orthogonal, init_scale=0.5)
    for name, read in weight_matrices(model).items():
        assert_close(torch.linalg.svdvals(read()), torch.full((min(read().shape),), 0.5).double(), msg=name)
    names = list(weight_matrices(model))
    assert names[0] == "patches"
    assert names[-2:] == ["block2.contract", "output"]


def test_its_tokens_are_pooled_by_name():
    model, labels = small(), torch.arange(10) % 5
    metrics = layer_metrics(model, [(gaussian(10, *IMAGE), labels)], 5, r"^block\d$", pool="cls", collapse=True)
    assert metrics["layer"].values.tolist() == ["input", "block1", "block2", "output.input"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 3}, "images of 8 × 12 cannot be cut into patches of 3 × 3"),
        ({"heads": 3}, "width 16 cannot be shared by 3 heads"),
        ({"heads": 0}, "heads must be at least 1"),
        ({"init_scale": 0.0}, "init_scale must be at least"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)
