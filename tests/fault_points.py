"""Kill a training run at every file operation of its checkpoints; run by test_checkpoints.py in a process of its own.

Each attempt is a fork, which dies without a word at the n-th operation (of a write, after half of its bytes) or by
SIGKILL at a random moment; a second one, started on the same folder, must end with the bytes of the run that was never
interrupted. Prints one line of JSON: the operations, and the attempts that ended otherwise.
"""

import hashlib
import json
import random
import shutil
import sys
import time
from pathlib import Path

import torch
from torch import nn

from lowdyn.training import Checkpoints, Minibatches, train
from tests.faults import Faults, forked

EPOCHS, EVERY = 3, 3


class Steps:
    """A tracker with a state."""

    def __init__(self):
        self.seen = []

    def step(self):
        self.seen.append(len(self.seen) ** 2)

    def state_dict(self):
        return {"seen": list(self.seen)}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def run(folder):
    """Train to the end, from where ``folder`` stands, and leave the hash of everything in ``folder``.hash."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.3), nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(26, 3, generator=torch.Generator().manual_seed(2))
    tracker = Steps()
    curve = train(
        model,
        Minibatches(x, (x[:, 0] > 0).long(), 8, generator),
        optimizer=optimizer,
        epochs=EPOCHS,
        scheduler=scheduler,
        tracker=tracker,
        checkpoints=Checkpoints(folder, EVERY, 2, generators=(torch.default_generator,)),
        on_epoch=lambda epoch: torch.rand(epoch, generator=generator),
    )
    seen = hashlib.sha256(json.dumps([curve.to_dict(), tracker.seen]).encode())
    for parameter in model.parameters():
        seen.update(parameter.detach().numpy().tobytes())
    for path in sorted(folder.rglob("*")):  # both checkpoints that stay, names and bytes
        seen.update(str(path.relative_to(folder)).encode() + (path.read_bytes() if path.is_file() else b""))
    folder.with_suffix(".hash").write_text(seen.hexdigest())


def attempt(folder, *fatal, kill_after=None):
    """Kill the run at each of ``fatal`` in turn, start it once more; return its hash."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".hash").unlink(missing_ok=True)
    for point in fatal:
        if forked(lambda point=point: (Faults(folder, point), run(folder))) not in (0, 9):
            return "no kill"
    if kill_after is not None:
        forked(lambda: run(folder), kill_after)
    if forked(lambda: run(folder)) != 0:
        return "not resumed"
    return folder.with_suffix(".hash").read_text()


def main(folder):
    run(folder / "first")  # what is loaded and set up on first use is there for all forks

    def count():
        faults = Faults(folder / "run")
        run(folder / "run")
        (folder / "names.json").write_text(json.dumps(faults.names))

    started = time.perf_counter()
    assert forked(count) == 0
    duration = time.perf_counter() - started
    names = json.loads((folder / "names.json").read_text())
    expected = (folder / "run.hash").read_text()
    draw = random.Random(0)
    attempts = {f"{point}: {name}": {"fatal": (point,)} for point, name in enumerate(names)}
    attempts |= {f"again and again {k}": {"fatal": draw.choices(range(60), k=8)} for k in range(3)}
    attempts |= {f"moment {k}": {"kill_after": draw.random() * duration} for k in range(5)}
    wrong = {}
    for name, how in attempts.items():
        found = attempt(folder / "run", *how.get("fatal", ()), kill_after=how.get("kill_after"))
        if found != expected:
            wrong[name] = found
    print(json.dumps({"names": names, "wrong": wrong, "attempts": len(attempts)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
