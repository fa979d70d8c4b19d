"""Layers in several places or that must stay, and models that factorize leaves as they were."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import prune
from torch.testing import assert_close

from lowdyn import factorize
from lowdyn.lowrank import merge
from tests.cases import built, gaussian, seeded
from tests.low_rank_layers import linear, mlp, of_rank, product

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


# --- layers that stand in several places, or must stay


class Twice(nn.Module):
    """One layer under two names, used three times."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.again = self.middle
        self.inner = nn.ModuleList([self.middle])

    def forward(self, x):
        return self.last(self.inner[0](self.again(torch.tanh(self.middle(self.first(x))))))


def test_a_layer_in_several_places_is_replaced_in_all():
    model = built(Twice).double()
    model.middle.weight.data = of_rank(2, 8, 8)
    expected = model(gaussian(5, 8))
    assert factorize(model, ranks=2).ranks == {"middle": 2}
    assert model.middle is model.again is model.inner[0]
    assert_close(model(gaussian(5, 8)), expected, rtol=1e-10, atol=1e-10)
    assert merge(model) == ["middle"]
    assert model.middle is model.again is model.inner[0]
    assert_close(model(gaussian(5, 8)), expected, rtol=1e-10, atol=1e-10)


def tied():
    model = nn.Sequential(nn.Embedding(20, 20), *(nn.Linear(20, 20) for _ in range(4)))
    model[2].weight = model[0].weight
    return model


def normed():
    model = nn.Sequential(*(nn.Linear(20, 20) for _ in range(5)))
    nn.utils.parametrizations.weight_norm(model[1])
    prune.random_unstructured(model[2], "weight", 0.5)
    return model


def hooked():
    model = nn.Sequential(*(nn.Linear(20, 20) for _ in range(4)))
    model[1].register_forward_hook(lambda *_: None)
    return model


def paired():
    return nn.Sequential(
        nn.Linear(20, 20),
        nn.Sequential(nn.Linear(20, 3, bias=False), nn.Linear(3, 20)),
        nn.Linear(20, 20),
        nn.Linear(20, 9),
    )


def transformer():
    layer = nn.TransformerEncoderLayer(20, 2, 20, batch_first=True)
    return nn.Sequential(nn.Linear(20, 20), layer, nn.Linear(20, 20), nn.Linear(20, 20))


@pytest.mark.parametrize(
    ("build", "reasons"),
    [
        (tied, {"2": "its weight is tied to another module's"}),
        (
            normed,
            {
                "1": "a ParametrizedLinear, not a plain Linear",
                "2": "its weight is computed or spread over devices, not a plain parameter",
            },
        ),
        (hooked, {"1": "it has hooks, which would be lost"}),
        (paired, {"1.0": "half of the pair 1; merge() first", "1.1": "half of the pair 1; merge() first"}),
        (
            transformer,
            {
                "1.self_attn.out_proj": "a NonDynamicallyQuantizableLinear, not a plain Linear",
                "1.linear1": "nn.TransformerEncoderLayer reads its weight",
                "1.linear2": "nn.TransformerEncoderLayer reads its weight",
            },
        ),
    ],
)  # fmt: skip
def test_what_must_stay_stays_and_the_table_says_why(build, reasons):
    with torch.random.fork_rng(devices=[]):
        model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = factorize(model, ranks=2)
    kept = {layer.name: layer.kept for layer in table.layers if layer.kept not in (None, "first layer", "last layer")}
    assert kept == reasons
    assert len(table.ranks) == 1
    for name in reasons:
        assert all(torch.equal(model.state_dict()[key], before[key]) for key in before if key.startswith(f"{name}."))


def test_hooks_and_optimizers_of_other_layers_go_on():
    model = mlp()
    factorize(model, ranks=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = product(model.hidden2)
    cross_entropy(model(gaussian(4, 12)), torch.arange(4)).backward()
    optimizer.step()
    assert not torch.equal(product(model.hidden2), before)


# --- refusals leave the model as it was


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ranks": 3, "layers": "attn"}, ValueError, r"no linear .* matches 'attn'.*hidden1, hidden2, output"),
        ({"ranks": 0}, ValueError, "ranks must be at least 1, got 0"),
        ({"ranks": True}, TypeError, "ranks must be a rank, a fraction, or ranks by name, got True"),
        ({"ranks": "3"}, TypeError, "ranks must be a rank, a fraction"),
        ({"ranks": 1.0}, ValueError, "as a fraction, must be below 1"),
        ({"ranks": 0.0}, ValueError, "as a fraction, must be above 0"),
        ({"ranks": float("nan")}, ValueError, "as a fraction, must be finite"),
        ({"ranks": {"hidden9": 2}}, ValueError, "ranks names 'hidden9', which is no layer.*hidden1, hidden2, output"),
        ({"ranks": {"hidden2": 2.0}}, TypeError, "rank of hidden2 must be a whole number"),
        ({"ranks": {"hidden2": 20}}, ValueError, r"rank of hidden2 must be below min\(out, in\) = 20, got 20"),
        ({"ranks": {"hidden2": 2}, "layers": "out"}, ValueError, "none is in both"),
        ({"ranks": 12}, ValueError, r"no layer was factorized \(.*hidden2: rank 12 saves nothing, at most 11 would"),
        ({"ranks": 2, "layers": "hidden1"}, ValueError, r"no layer was factorized \(hidden1: first layer\)"),
        ({"ranks": 2, "loss": lambda model: 1.0}, TypeError, "loss must return a scalar tensor"),
        ({"ranks": 2, "loss": lambda model: model(gaussian(2, 12))}, TypeError, "loss must return a scalar tensor"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_and_nothing_is_changed(arguments, error, message):
    model = mlp()
    before = list(model.named_modules())
    with pytest.raises(error, match=message):
        factorize(model, **arguments)
    assert list(model.named_modules()) == before


def test_models_that_cannot_be_operated_on_are_refused():
    with pytest.raises(ValueError, match=r"the model is itself one Linear; put it into an nn.Sequential"):
        factorize(linear(gaussian(4, 4)), ranks=1)
    with pytest.raises(ValueError, match="no linear or convolutional layer at all"):
        factorize(nn.ReLU(), ranks=1)
    with pytest.raises(ValueError, match="0 is lazy and has no shape yet"):
        factorize(nn.Sequential(nn.LazyLinear(4)), ranks=1)
    with pytest.raises(ValueError, match=r"no pair matches None: this model has no pair at all"):
        merge(mlp())


def test_weights_without_values_are_refused_by_name():
    model = mlp()
    model.hidden2.weight.data[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"hidden2.weight holds 1 values that are NaN"):
        factorize(model, ranks=3)
    empty = mlp().to("meta")
    with pytest.raises(ValueError, match=r"hidden2.weight is on the meta device .* draw factors with generator="):
        factorize(empty, ranks=3)
    assert factorize(empty, ranks=3, generator=seeded()).ranks == {"hidden2": 3}  # as a form to load weights into
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}


def test_a_model_in_several_processes_is_refused(monkeypatch):
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", nn.Sequential)  # a real one needs a process group
    with pytest.raises(ValueError, match="wrapped in DistributedDataParallel; factorize or merge it first"):
        factorize(nn.Sequential(mlp()), ranks=3)
    with pytest.raises(ValueError, match="wrapped in DistributedDataParallel; factorize or merge it first"):
        merge(nn.Sequential(mlp()))


def test_a_compiled_model_goes_on_with_its_pairs():
    model = mlp()
    compiled = torch.compile(model, backend="eager")
    inputs = gaussian(4, 12)
    compiled(inputs)
    assert factorize(compiled, ranks=4).ranks == {"hidden2": 4}
    assert_close(compiled(inputs), model(inputs))
    assert merge(compiled) == ["hidden2"]
    assert_close(compiled(inputs), model(inputs))


def test_a_warning_when_little_is_factorized():
    model = mlp(200, 100, 12, 12, 5)
    with pytest.warns(UserWarning, match=r"the layers factorized \(hidden3\) held 0\.7% of the model's parameters"):
        factorize(model, ranks=2, layers="hidden3")
