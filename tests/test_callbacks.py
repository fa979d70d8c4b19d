import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from lowdyn import Spectra
from lowdyn.observe import trainer_callback
from tests.cases import built, gaussian
from tests.tracked import Clock, Costly, vit

transformers = pytest.importorskip("transformers", reason="the callback is for transformers' Trainer")
pytest.importorskip("accelerate", reason="transformers' Trainer runs on Accelerate")


class Pictures(Dataset):
    """Eight grey pictures of three classes."""

    pixels = gaussian(8, 1, 8, 8).float()

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index], "labels": index % 3}


class Net(nn.Module):
    """What the Trainer takes for a model: it returns its loss."""

    def __init__(self):
        super().__init__()
        self.hidden, self.classifier = nn.Linear(64, 8), nn.Linear(8, 3)

    def forward(self, pixel_values, labels):
        logits = self.classifier(self.hidden(pixel_values.flatten(1)).relu())
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Ticking(transformers.TrainerCallback):
    """A second of training at every step."""

    def __init__(self, clock):
        self.clock = clock

    def on_step_end(self, args, state, control, **kwargs):
        self.clock.now += 1.0


def train(folder, callback=None, clock=None, steps=40, resume=False, build=vit, others=(), **options):
    """Train under the Trainer, which seeds the global generators: they are put back."""
    model = built(build)
    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        logging_strategy="no",
        **{"save_strategy": "no", **options},
    )
    callbacks = [one for one in (Ticking(clock) if clock else None, callback, *others) if one]
    with torch.random.fork_rng(devices=[]):
        trainer = transformers.Trainer(model, arguments, train_dataset=Pictures(), callbacks=callbacks)
        trainer.train(resume_from_checkpoint=resume or None)
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


@pytest.mark.filterwarnings("ignore")  # the Trainer's and its data loader's own
def test_a_trainer_is_tracked_at_a_budget_and_not_a_bit_changes(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("lowdyn.observe.tracker.perf_counter", clock)
    told = []
    callback = trainer_callback(
        Costly(Spectra(), clock, 0.3, 0.1), every=1, budget=0.05, on_record=lambda step, record: told.append(step)
    )
    weights = train(tmp_path, callback, clock)
    assert weights == train(tmp_path)
    trajectory = callback.tracker.trajectory
    assert callback.tracker.steps == 40
    assert trajectory.sizes["step"] >= 8
    assert trajectory.attrs["share"] <= 0.05
    assert trajectory["step"].values.tolist() == told
    assert not callback.tracker.failures
    assert trajectory.sizes["layer"] == 14
    assert float(trajectory["move_norm"][-1].min()) > 0


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_goes_on_from_a_checkpoint_keeps_its_records(tmp_path):
    options = {"build": Net, "save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "constant"}
    whole = trainer_callback(Spectra("classifier"), every=2)
    train(tmp_path / "whole", whole, steps=8, **options)
    train(tmp_path / "cut", trainer_callback(Spectra("classifier"), every=2), steps=4, **options)
    assert (tmp_path / "cut" / "checkpoint-4" / "tracker.safetensors").is_file()
    second = trainer_callback(Spectra("classifier"), every=2)
    train(tmp_path / "cut", second, steps=8, resume=True, **options)
    resumed, expected = second.tracker.trajectory, whole.tracker.trajectory
    assert resumed["step"].values.tolist() == [0, 2, 4, 6, 8]
    # A tracker that began again at step 4 would measure the move from there.
    np.testing.assert_array_equal(resumed["move_norm"], expected["move_norm"])
    np.testing.assert_array_equal(resumed["left_angles"], expected["left_angles"])


@pytest.mark.filterwarnings("ignore")
def test_a_state_that_cannot_be_written_is_a_failure(tmp_path):
    class Blocked(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:  # there is a folder where the file is to go
                (tmp_path / "checkpoint-2" / "tracker.safetensors" / "full").mkdir(parents=True)

    options = {"build": Net, "save_strategy": "steps", "save_steps": 2}
    callback = trainer_callback(Spectra("classifier"), every=1)
    weights = train(tmp_path, callback, steps=4, others=[Blocked()], **options)
    assert weights == train(tmp_path / "without", steps=4, **options)
    assert [(one["step"], one["probe"]) for one in callback.tracker.failures] == [(2, "checkpoint")]
    assert "OSError" in callback.tracker.failures[0]["because"] or "IsADir" in callback.tracker.failures[0]["because"]
    assert (tmp_path / "checkpoint-4" / "tracker.safetensors").is_file()
    assert callback.tracker.trajectory["step"].values.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore")
def test_a_renamed_model_goes_on_when_it_is_made_from_the_checkpoint(tmp_path):
    """The Trainer restores no renamed module; what it leaves is what from_pretrained has read."""
    options = {"save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "constant"}
    whole, second = (trainer_callback(Spectra("layers"), every=2) for _ in range(2))
    weights = train(tmp_path / "whole", whole, steps=8, **options)
    train(tmp_path / "cut", trainer_callback(Spectra("layers"), every=2), steps=4, **options)
    checkpoint = tmp_path / "cut" / "checkpoint-4"
    again = train(
        tmp_path / "cut", second, steps=8, resume=True, build=lambda: type(vit()).from_pretrained(checkpoint), **options
    )
    assert again == weights
    np.testing.assert_array_equal(second.tracker.trajectory["move_norm"], whole.tracker.trajectory["move_norm"])


def test_the_adapter_asks_for_what_it_needs(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        trainer_callback(Spectra())


def test_wrong_arguments_are_not_swallowed():
    callback = trainer_callback(Spectra("nothing"), every=1)
    with pytest.raises(ValueError, match="no weight matches 'nothing'"):
        callback.on_train_begin(None, None, None, model=built(lambda: nn.Linear(2, 2)))
