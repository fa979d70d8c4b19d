"""Completion on observed entries against full matrices in plain torch, written here, in the same run.

The compressed network is that of Yaras et al. 2023 (U, three cores of 10 x 10, Vᵀ; the outer rate γ times the inner
one). The yardsticks form the residual as a full matrix, in place, with as few products as there can be.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import resource
import subprocess
import sys
import time

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import svds
from timing import finish, medians, report
from torch import Tensor

from lowdyn import DeepLinearNetwork, Descent, gradient_descent
from lowdyn.dynamics import ScaledDescent
from lowdyn.problems import Completion, low_rank_target

RANK, SEEN, GAMMA, INIT_SCALE, ETA = 5, 0.2, 0.01, 1e-3, 5e-3
PUBLISHED_STEPS = 19_900  # of compressed descent with these settings to 1e-6 at d = 1000
RATINGS, USERS, ITEMS, FACTORS = 20_000_000, 200_000, 20_000, 10


def drawn(width: int, seen: float = SEEN) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rank = RANK
    if width > 1000:  # of the same kind, without an SVD of this width
        left, right = (torch.linalg.qr(torch.randn(width, rank, generator=generator).double())[0] for _ in range(2))
        target = 2 * width**0.5 * left @ right.mT
    else:
        target = low_rank_target(width, width, rank=rank, generator=generator)
    return target, torch.rand(width, width, generator=generator) < seen


class DenseStep:
    """One step of compressed descent on ½‖mask ⊙ (U W_3 W_2 W_1 Vᵀ − target)‖², full matrices in buffers."""

    def __init__(self, weights: list[Tensor], target: Tensor, mask: Tensor) -> None:
        self.weights = [weight.clone() for weight in weights]
        self.target, self.mask = target, mask.to(target.dtype)
        self.residual = torch.empty_like(target)

    def __call__(self) -> None:
        """Make one step."""
        v, w1, w2, w3, u = self.weights
        two = w2 @ w1
        three = w3 @ two
        a = u @ three
        residual = torch.mm(a, v, out=self.residual).sub_(self.target).mul_(self.mask)
        of_a, of_v = residual @ v.mT, a.mT @ residual
        above = u.mT @ of_a
        of_u, of_w3 = of_a @ three.mT, above @ two.mT
        above = w3.mT @ above
        of_w2, of_w1 = above @ w1.mT, w2.mT @ above
        u.sub_(of_u, alpha=GAMMA * ETA)
        v.sub_(of_v, alpha=GAMMA * ETA)
        for weight, gradient in ((w1, of_w1), (w2, of_w2), (w3, of_w3)):
            weight.sub_(gradient, alpha=ETA)


def compressed(width: int) -> DeepLinearNetwork:
    """A network of the sizes and scales of the compressed one; what the time of a step depends on."""
    generator = torch.Generator().manual_seed(1)
    inner = 2 * RANK
    network = DeepLinearNetwork((width, inner, inner, inner, inner, width), generator=generator)
    for weight in network.weights[1:-1]:
        weight.mul_(INIT_SCALE)
    return network


def step(width: int, steps: int, limit: float) -> bool:
    target, mask = drawn(width)
    network, problem = compressed(width), Completion(target, mask, reduction="sum")
    dense = DenseStep(network.weights, target, mask)
    rule = Descent(lr=ETA, factor_rates=(GAMMA, 1, 1, 1, GAMMA))

    for _ in range(3):
        dense()
    gradient_descent(network, problem, rule, 3)
    apart = max(float((one - two).abs().max()) for one, two in zip(dense.weights, network.weights, strict=True))
    assert apart < 1e-10, f"the two have not made the same steps: {apart:.1e}"

    def plain() -> None:
        for _ in range(steps // 5):
            dense()

    times = medians(
        {"fused": lambda: gradient_descent(network, problem, rule, steps, every=steps), "dense": plain}, repeats=9
    )
    fused, full = times["fused"] / steps, times["dense"] / (steps // 5)
    print(f"     {fused * 1e3:.2f} ms a fused step, {full * 1e3:.2f} ms dense, {full / fused:.1f} times as long")
    return report(
        f"fused step, d = {width}, 20 %",
        "the same step on full matrices in torch",
        fused / full,
        1 / limit,
        f"compressed step on 20 % of the entries, width {width}",
    )


def linear(width: int = 2000) -> bool:
    """Return whether the processor time of a step grows no faster than the entries while eight times as many are seen.

    Processor time, since the longer call is the one that others interrupt.
    """
    target, _ = drawn(width)
    generator = torch.Generator().manual_seed(2)
    network, rule = compressed(width), Descent(lr=ETA, factor_rates=(GAMMA, 1, 1, 1, GAMMA))
    entries, seconds = [], []
    for seen in (0.05, 0.1, 0.2, 0.4):
        problem = Completion(target, torch.rand(width, width, generator=generator) < seen, reduction="sum")
        times = []
        for _ in range(8):
            began = time.process_time()
            gradient_descent(network, problem, rule, 20, every=20)
            times.append(time.process_time() - began)
        entries.append(problem.count)
        seconds.append(np.median(times[1:]))
    exponent = np.polyfit(np.log(entries), np.log(seconds), 1)[0]
    return report("time against observed entries, 5 to 40 %", "a straight line's exponent", exponent, 1.1)


def spectral(problem: Completion) -> DeepLinearNetwork:
    """W_2 W_1 = the best rank-r approximation of the surrogate."""
    surrogate = problem.surrogate()
    u, values, vt = svds(surrogate, k=RANK, v0=np.ones(min(problem.shape)))
    root = np.sqrt(values)
    return DeepLinearNetwork.from_weights([root[:, None] * vt, u * root])


def plain_scaled(target: Tensor, mask: Tensor, steps: int) -> Tensor:
    """ScaledGD as its paper writes it, η = 0.5, on full matrices."""
    seen = mask.to(target.dtype)
    fraction = float(seen.mean())
    u, values, vt = svds((target * seen / fraction).numpy(), k=RANK, v0=np.ones(len(target)))
    root = np.sqrt(values)
    left, right = torch.from_numpy(u * root), torch.from_numpy(vt.T * root)
    for _ in range(steps):
        residual = seen * (left @ right.mT - target) / fraction
        of_left = residual @ right @ torch.linalg.inv(right.mT @ right)
        of_right = residual.mT @ left @ torch.linalg.inv(left.mT @ left)
        left, right = left - 0.5 * of_left, right - 0.5 * of_right
    return left @ right.mT


def recovery(width: int = 1000) -> list[bool]:
    target, mask = drawn(width)
    rows, columns = np.nonzero(mask.numpy())
    matrix = sparse.coo_array((target[mask].numpy(), (rows, columns)), shape=target.shape)

    def error(product: Tensor) -> float:
        return float((product - target)[~mask].norm() / target[~mask].norm())

    def ours(steps: int) -> DeepLinearNetwork:
        problem = Completion.from_sparse(matrix)
        network = spectral(problem)
        gradient_descent(network, problem, ScaledDescent(lr=0.5 * width**2), steps, every=max(steps, 1))
        return network

    steps = next(steps for steps in range(10, 200) if error(ours(steps).end_to_end()) < 1e-6)
    plain_steps = next(steps for steps in range(10, 200) if error(plain_scaled(target, mask, steps)) < 1e-6)
    dense = DenseStep(compressed(width).weights, target, mask)
    stretch = 40

    def published() -> None:
        for _ in range(stretch):
            dense()

    calls = {
        "ours": lambda: ours(steps),
        "plain": lambda: plain_scaled(target, mask, plain_steps),
        "published": published,
    }
    times = medians(calls, repeats=7)
    whole = times["published"] / stretch * PUBLISHED_STEPS
    print(
        f"     ScaledDescent {steps} steps {times['ours']:.3f} s; ScaledGD plainly {plain_steps} steps "
        f"{times['plain']:.3f} s; published settings {whole:.0f} s ({PUBLISHED_STEPS} steps, timed on {stretch})"
    )
    return [
        report("recovery to 1e-6, d = 1000, 20 %", "published settings, dense", times["ours"] / whole, 1 / 50),
        report(
            "recovery to 1e-6, d = 1000, 20 %",
            "ScaledGD written plainly in torch",
            times["ours"] / times["plain"],
            1,
            "recovery to 1e-6 at width 1000 by ScaledDescent",
        ),
    ]


def ratings() -> list[bool]:
    """Return whether 20 million ratings fit, in this process, into 4 GiB and a pass into two seconds."""
    rng = np.random.default_rng(0)
    places = np.unique(rng.integers(0, USERS * ITEMS, RATINGS + RATINGS // 200))[:RATINGS]
    rows, columns = (places // ITEMS).astype(np.int32), (places % ITEMS).astype(np.int32)
    del places
    values = rng.integers(1, 11, RATINGS) / 2
    began = time.perf_counter()
    problem = Completion.from_sparse(sparse.coo_array((values, (rows, columns)), shape=(USERS, ITEMS)))
    built = time.perf_counter() - began
    del rows, columns, values
    network = DeepLinearNetwork((ITEMS, FACTORS, USERS), generator=torch.Generator().manual_seed(0))
    rule = Descent(lr=1.0)
    gradient_descent(network, problem, rule, 1)
    times = medians({"five": lambda: gradient_descent(network, problem, rule, 5, every=5)}, repeats=3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"     {problem.count} ratings taken in {built:.1f} s, peak {peak:.2f} GiB with their making")
    return [
        report("20 million ratings, rank 10, peak memory", "4 GiB", peak / 4, 1),
        # Five steps and the loss after the last are six looks at the data.
        report("20 million ratings, rank 10, a pass", "two seconds", times["five"] / 6 / 2, 1),
    ]


if __name__ == "__main__":
    if sys.argv[1:] == ["ratings"]:
        finish(ratings())
    kept = [step(1000, 50, 2.5), step(5000, 40, 6.0), linear(), *recovery()]
    # In a process of its own, whose peak memory is its own.
    kept.append(subprocess.run([sys.executable, __file__, "ratings"], check=False).returncode == 0)
    finish(kept)
