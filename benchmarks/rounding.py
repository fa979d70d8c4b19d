"""How much of a stored ReLU collapse run is rounding: the run again with 64 bits of mantissa, and in float64.

    python benchmarks/rounding.py FOLDER [L8_eps0.5_orth …]

FOLDER holds the stored runs of the papers' code (collapse_L8_init_types.npz, collapse_depths.npz). Each is repeated
from its stored start in NumPy's long double, twice, summed forwards and backwards: where the two agree, the digits are
the mathematics'. Then the program's own float64 run and the stored one are held against it. Two to four minutes a run.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from lowdyn import Descent, gradient_descent, layer_metrics
from lowdyn.networks import MLP
from lowdyn.problems import Regression

FILES = {"L4": "collapse_L4_init_scales", "L6": "collapse_depths", "L8": "collapse_L8_init_types"}
FILES["L10"] = FILES["L6"]


def extended(run, start, depth, *, backwards):
    """D_l, steps and loss of the run in long double; ``backwards`` reverses the order of every sum."""
    order = np.s_[::-1] if backwards else np.s_[:]
    weights = [run[f"{start}_init_W{layer}"].astype(np.longdouble) for layer in range(1, depth + 1)]
    inputs, targets = run["input"].astype(np.longdouble), run["target"].astype(np.longdouble)

    def product(left, right):
        return left[:, order] @ right[order]

    for step in range(200_001):
        features = [inputs]
        for layer, weight in enumerate(weights, start=1):
            output = product(weight, features[-1])
            features.append(np.maximum(output, 0) if layer < depth else output)
        residual = features.pop() - targets
        loss = (residual**2).sum() / (2 * targets.size)
        if step % 100 == 0 and loss < run["tol"].item():
            break
        pulled = residual / targets.size
        for layer in reversed(range(depth)):
            slope = product(pulled, features[layer].T)
            if layer:
                pulled = product(weights[layer].T, pulled) * (features[layer] > 0)
            weights[layer] -= run["step_size"].item() * slope
    return np.array([ratio(layer, run["labels"]) for layer in features]), step, float(loss)


def ratio(features, labels):
    """D_l of features (width, samples) in classes of one size."""
    means = np.stack([features[:, labels == k].mean(axis=1) for k in np.unique(labels)], axis=1)
    within = sum(((features[:, labels == k] - means[:, [k]]) ** 2).sum() for k in np.unique(labels)) / len(labels)
    between = ((means - means.mean(axis=1, keepdims=True)) ** 2).sum() / means.shape[1]
    return float(within / between)


def in_float64(run, start, depth):
    network = MLP.from_weights([run[f"{start}_init_W{layer}"] for layer in range(1, depth + 1)])
    problem, descent = Regression(run["input"], run["target"]), Descent(lr=run["step_size"].item())
    trajectory = gradient_descent(network, problem, descent, 200_000, every=100, tol=run["tol"].item())
    batch = (torch.from_numpy(run["input"].T), torch.from_numpy(run["labels"]))
    metrics = layer_metrics(network, [batch], len(run["target"]), r"^relu\d+$").isel(layer=slice(depth))
    return metrics["within_between_ratio"].values, int(trajectory["step"][-1]), float(trajectory["loss"][-1])


def main(folder, starts):
    for start in starts:
        depth = int(start[1:].split("_")[0])
        with np.load(Path(folder) / f"{FILES[f'L{depth}']}.npz") as file:
            run = dict(file)
        truth, steps, loss = extended(run, start, depth, backwards=False)
        again, *_ = extended(run, start, depth, backwards=True)
        print(f"{start}: {steps} steps to {loss:.3g} in long double")
        print(f"  D_1 … D_{depth - 1}", *(f"{value:.10g}" for value in truth[1:]))
        stored = run[f"{start}_relu_within_over_between"], run[f"{start}_relu_iterations"]
        ours = in_float64(run, start, depth)
        for name, values, count in (
            ("long double, summed backwards", again, steps),
            ("stored run (float64)", *stored),
            ("lowdyn (float64)", *ours[:2]),
        ):
            print(
                f"  {name}: {int(count)} steps, off by up to {np.max(np.abs(values / truth - 1)):.1e} of D_l",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or ["L8_eps0.5_orth", "L8_eps0.5_unif", "L8_eps0.5_norm"])
