"""The tracker inside transformers' Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save

from lowdyn.files import replace_atomically
from lowdyn.observe.schedule import Schedule
from lowdyn.observe.tracker import OnRecord, Tracker
from lowdyn.trajectory import Probe

if TYPE_CHECKING:
    from transformers import TrainerCallback

FILE = "tracker.safetensors"


def trainer_callback(
    *probes: Probe,
    every: int | Schedule = 100,
    budget: float | None = None,
    on_record: OnRecord | None = None,
) -> TrainerCallback:
    """Return a callback for transformers' Trainer that looks through ``probes`` while it trains.

    The arguments are those of :class:`~lowdyn.Tracker`, which the callback makes when training begins and holds as
    ``tracker``; a step is an update of the optimizer. Every checkpoint that the Trainer writes gets the tracker's
    state in a file beside the model's, and training that goes on from a checkpoint goes on with it. A file that cannot
    be written is one of the tracker's ``failures``, and training goes on.

    The model's weights are the Trainer's business. Of models whose modules transformers has renamed since their weights
    were published, such as ViT in 5.23, its ``resume_from_checkpoint`` leaves the renamed ones as they are, with no
    more than a warning of missing keys (huggingface/transformers, issue 43701): make the model by ``from_pretrained``
    of that checkpoint, which renames.

    >>> from lowdyn import Spectra
    >>> callback = trainer_callback(Spectra(), every=10, budget=0.05)
    >>> callback.tracker is None  # until trainer.train()
    True
    """
    try:
        from transformers import TrainerCallback
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("trainer_callback needs transformers: pip install 'lowdyn[peft]'") from error

    class Tracking(TrainerCallback):  # type: ignore[misc, unused-ignore]
        """Makes a tracker when training begins, and steps it with the Trainer."""

        tracker: Tracker | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.tracker = Tracker(model, *probes, every=every, budget=budget, on_record=on_record)
            path = _file(args, state)
            if state.global_step and path.is_file():
                self.tracker.load_state_dict(load_file(path))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert self.tracker is not None
            self.tracker.step()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.tracker is not None:
                self.tracker.attempt("checkpoint", _keep, self.tracker, args, state)

    return Tracking()


def _keep(tracker: Tracker, args: Any, state: Any) -> None:
    held = tracker.state_dict()  # of a sharded model every process takes part
    if state.is_world_process_zero:
        replace_atomically(_file(args, state), save(held))


def _file(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / FILE
