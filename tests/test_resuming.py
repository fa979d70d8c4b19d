"""Runs taken up from a checkpoint end as if they had not been interrupted; those of another run are refused."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

from lowdyn import LayerMetrics, Spectra, Tracker, train
from lowdyn.networks import MLP
from lowdyn.training import Minibatches
from tests.cases import built, seeded
from tests.resumed import Stop, X, Y, assert_same_run, interrupted, run

pytest.importorskip("accelerate", reason="the minibatch loop runs on Accelerate")
pytestmark = pytest.mark.usefixtures("nothing_global_changes")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- resuming


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 8, 11, 12])
@pytest.mark.parametrize("every", [None, 1, 3])
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, every, stop):
    expected = run(tmp_path / "whole", every=every)
    interrupted(tmp_path / "run", stop, every=every)
    assert_same_run(run(tmp_path / "run", every=every), expected)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_checkpoints_change_nothing(tmp_path):
    expected = MLP((3, 8, 2), generator=seeded())
    optimizer = torch.optim.AdamW(expected.parameters(), lr=0.05)
    curve = train(expected, Minibatches(X, Y, 16, seeded(1)), optimizer=optimizer, epochs=3)
    assert_same_run(run(tmp_path, every=1, rate=None), (expected, curve))


@pytest.mark.parametrize("rate", ["steps", "cycle", "plateau", "sequence", None])
def test_every_schedule_goes_on(tmp_path, rate):
    expected = run(tmp_path / "whole", every=2, rate=rate)
    interrupted(tmp_path / "run", 5, every=2, rate=rate)
    assert_same_run(run(tmp_path / "run", every=2, rate=rate), expected)


def test_a_data_loader_replays_its_order(tmp_path):
    def loader(batch_size=8):
        return DataLoader(TensorDataset(X, Y), batch_size, shuffle=True, generator=seeded(2))

    expected = run(tmp_path / "whole", loader=loader(), rate=None, every=3)
    interrupted(tmp_path / "run", 10, loader=loader(), rate=None, every=3)
    assert_same_run(run(tmp_path / "run", loader=loader(), rate=None, every=3), expected)


def test_a_data_set_that_draws_itself_is_replayed(tmp_path):
    noise = seeded(5)

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return len(X)

        def __getitem__(self, place):
            return X[place] + torch.randn(3, generator=noise), Y[place]

    results = []
    for stop in (None, 10):
        noise.manual_seed(5)
        options = {"rate": None, "every": 3, "generators": (noise,)}
        folder = tmp_path / str(stop)
        if stop:
            interrupted(folder, stop, loader=DataLoader(Noisy(), 8, generator=seeded()), **options)
            noise.manual_seed(99)
        results.append(run(folder, loader=DataLoader(Noisy(), 8, generator=seeded()), **options))
    assert_same_run(*results)


def test_dropout_goes_on_when_its_generator_is_named(tmp_path):
    def dropout():
        return built(lambda: nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)))

    options = {"every": 3, "generators": (torch.default_generator,)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = run(tmp_path / "whole", model=dropout(), **options)
        torch.manual_seed(3)
        interrupted(tmp_path / "run", 8, model=dropout(), **options)
        torch.manual_seed(4)
        resumed = run(tmp_path / "run", model=dropout(), **options)
    assert_same_run(resumed, expected)


def test_buffers_and_tied_weights_go_on(tmp_path):
    def tied():
        model = built(lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Linear(3, 2)))
        model[2].weight = model[0].weight
        return model

    expected = run(tmp_path / "whole", model=tied(), every=3)
    interrupted(tmp_path / "run", 8, model=tied(), every=3)
    resumed = run(tmp_path / "run", model=tied(), every=3)
    assert_same_run(resumed, expected)
    assert_close(resumed[0].state_dict(), expected[0].state_dict(), rtol=0, atol=0)
    assert resumed[0][2].weight is resumed[0][0].weight


def test_what_has_a_state_gets_it_back(tmp_path):
    class Steps:
        seen = 0

        def step(self):
            self.seen += 1

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    first, second = Steps(), Steps()
    run(tmp_path, epochs=1, tracker=first)
    run(tmp_path, epochs=2, tracker=second)
    assert (first.seen, second.seen) == (4, 8)


def test_a_finished_run_is_not_trained_again_and_a_longer_one_goes_on(tmp_path):
    first, curve = run(tmp_path, epochs=2, rate=None)
    before = contents(tmp_path)
    done = []
    again = run(tmp_path, epochs=2, rate=None, on_epoch=done.append)
    assert_same_run(again, (first, curve))
    assert done == []
    assert contents(tmp_path) == before
    longer = run(tmp_path, epochs=3, rate=None, on_epoch=done.append)
    assert done == [3]
    assert_same_run(longer, run(tmp_path / "whole", epochs=3, rate=None))


def test_accumulated_gradients_go_on(tmp_path):
    from accelerate import Accelerator

    options = {"every": 2, "rate": None, "loader": None}
    results = []
    for stop in (None, 5):
        folder = tmp_path / str(stop)
        options["loader"] = Minibatches(X, Y, 6, seeded(1))
        if stop:
            interrupted(folder, stop, accelerator=Accelerator(gradient_accumulation_steps=2), **options)
            options["loader"] = Minibatches(X, Y, 6, seeded(1))
        results.append(run(folder, accelerator=Accelerator(gradient_accumulation_steps=2), **options))
    assert_same_run(*results)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_mixed_precision_goes_on(tmp_path, accelerators, accumulated):
    def in_bf16(folder, **options):
        accelerator = accelerators(mixed_precision="bf16", gradient_accumulation_steps=accumulated)
        loader = Minibatches(X, Y, 16 // accumulated, seeded(1))
        return run(folder, accelerator=accelerator, loader=loader, every=3, **options)

    expected = in_bf16(tmp_path / "whole")
    with pytest.raises(Stop):
        in_bf16(tmp_path / "run", stop=8)
    assert_same_run(in_bf16(tmp_path / "run"), expected)
    plain = run(tmp_path / "float32", every=3, accelerator=accelerators())
    assert not torch.equal(plain[0].weights[0], expected[0].weights[0])  # it was bf16


class Interrupted(Tracker):
    """A tracker after whose look at step 8 the run is interrupted."""

    def step(self):
        super().step()
        if self.steps == 8:
            raise Stop


def test_a_tracker_goes_on_with_the_run(tmp_path):
    def tracked(folder, kind=Tracker, top=1):
        model = MLP((3, 200, 190, 2), generator=seeded())
        loader = DataLoader(TensorDataset(X, Y), 20, shuffle=True, generator=seeded(3))
        tracker = kind(model, Spectra(top=top), LayerMetrics(loader, 2, collapse=True), every=2)
        return run(folder, model=model, tracker=tracker, every=3), tracker.trajectory

    expected, records = tracked(tmp_path / "whole")
    with pytest.raises(Stop):
        tracked(tmp_path / "run", Interrupted)
    with pytest.raises(
        ValueError, match=r"step 6 in .* is of another run: this state is of Spectra with top=1, .* has 2"
    ):
        tracked(tmp_path / "run", top=2)
    resumed, again = tracked(tmp_path / "run")
    assert_same_run(resumed, expected)
    assert again.identical(records)
    assert records["step"].values.tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert records["exact"].sel(layer="hidden2").values.tolist() == [1, 0, 0, 0, 0, 0, 0]


# --- refusals


@pytest.mark.parametrize(
    "options", [{"shuffle": True}, {"sampler": SubsetRandomSampler(range(9))}, {"sampler": WeightedRandomSampler(Y, 9)}]
)
def test_an_order_that_cannot_be_repeated_is_refused(tmp_path, options):
    with pytest.raises(ValueError, match=r"draws from torch's global generator.*pass it, or its sampler, generator="):
        run(tmp_path, loader=DataLoader(TensorDataset(X, Y), 8, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": MLP((3, 9, 2), generator=seeded())}, "is of another run: .*size mismatch"),
        ({"rate": None}, "has scheduler that this run lacks"),
        ({"generators": (seeded(),)}, "has 1 generators that this run lacks, and lacks 2 generators"),
        ({"loader": [(X, Y)]}, "has 1 generators that this run lacks"),
        ({"epochs": 1}, "has completed 2 epochs, epochs=1 are fewer"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path, options, message):
    run(tmp_path, epochs=2)
    with pytest.raises(ValueError, match=f"the checkpoint of step 8 in .*{message}"):
        run(tmp_path, **{"epochs": 3, **options})
