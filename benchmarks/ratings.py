"""MovieLens-100K: errors and times of fits beside Surprise's SVD and SVD++, fold by fold in the same run.

Needs the extra `bench` and the data: `python benchmarks/ratings.py --data-dir DIR`, or the variable LOWDYN_DATA.
Two splits, named in every line: u1 … u5, the set's own parts, and five random folds (scikit-learn's KFold, seed 0).
"Tuned" means rank and regularization of least error on the validation share that a fit holds out of its training part.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import statistics
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd
import surprise
from sklearn.model_selection import KFold
from timing import finish, report

from lowdyn import DeepMatrixCompletion
from lowdyn.data import RatingSet, load_ratings

RANKS, REGULARIZATIONS = (10, 20, 40), (0.4, 0.5)


def rmse(estimates: np.ndarray, test: RatingSet) -> float:
    return float(np.sqrt(np.mean((estimates - test.values) ** 2)))


def lowdyn_default(train: RatingSet, test: RatingSet) -> tuple[float, float]:
    """Return test error and seconds of a fit with defaults."""
    matrix, began = train.matrix(), time.perf_counter()
    model = DeepMatrixCompletion(random_state=0).fit(matrix)
    seconds = time.perf_counter() - began
    return rmse(model.predict_entries(test.rows, test.columns), test), seconds


def lowdyn_tuned(train: RatingSet, test: RatingSet) -> tuple[float, float]:
    """Return test error and seconds of the whole search; the test ratings are looked at once, after it."""
    matrix, began = train.matrix(), time.perf_counter()
    models = [
        DeepMatrixCompletion(rank, regularization=regularization, random_state=0).fit(matrix)
        for rank in RANKS
        for regularization in REGULARIZATIONS
    ]
    best = min(models, key=lambda model: model.validation_curve_.min())
    seconds = time.perf_counter() - began
    return rmse(best.predict_entries(test.rows, test.columns), test), seconds


def of_surprise(algorithm: type) -> object:
    """Return the function that fits an algorithm of Surprise with its defaults."""

    def fit(train: RatingSet, test: RatingSet) -> tuple[float, float]:
        frame = pd.DataFrame({"user": train.rows, "item": train.columns, "rating": train.values})
        reader = surprise.Reader(rating_scale=(1, 5))
        trainset = surprise.Dataset.load_from_df(frame, reader).build_full_trainset()
        model, began = algorithm(random_state=0), time.perf_counter()
        model.fit(trainset)
        seconds = time.perf_counter() - began
        pairs = zip(test.rows.tolist(), test.columns.tolist(), strict=True)
        return rmse(np.array([model.predict(*pair).est for pair in pairs]), test), seconds

    return fit


METHODS = {
    "lowdyn": lowdyn_default,
    "lowdyn tuned": lowdyn_tuned,
    "Surprise SVD": of_surprise(surprise.SVD),
    "Surprise SVD++": of_surprise(surprise.SVDpp),
}


def splits(ratings: RatingSet) -> Iterator[tuple[str, list[tuple[RatingSet, RatingSet]]]]:
    yield "u1…u5", [ratings.fold(number) for number in range(1, 6)]
    folds = KFold(5, shuffle=True, random_state=0).split(np.arange(len(ratings)))
    marks = [np.isin(np.arange(len(ratings)), test) for _, test in folds]
    yield "random 5-fold", [(ratings.select(~mark, "train"), ratings.select(mark, "test")) for mark in marks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", help="folder that holds ml-100k/")
    ratings = load_ratings(folder=parser.parse_args().data_dir)
    lowdyn_default(*ratings.fold(1))  # what numba compiles is not part of a fit
    kept = []
    for split, folds in splits(ratings):
        errors: dict[str, list[float]] = {name: [] for name in METHODS}
        seconds: dict[str, list[float]] = {name: [] for name in METHODS}
        for train, test in folds:  # all methods on a fold in turn: a noisy minute meets them all
            for name, fit in METHODS.items():
                error, took = fit(train, test)
                errors[name].append(error)
                seconds[name].append(took)
        for name in METHODS:
            each = " ".join(f"{error:.4f}" for error in errors[name])
            middle = statistics.median(seconds[name])
            print(f"     {split}, {name}: RMSE {statistics.mean(errors[name]):.4f} ({each}), {middle:.2f} s a fit")
        mean = {name: statistics.mean(values) for name, values in errors.items()}
        middle = {name: statistics.median(values) for name, values in seconds.items()}
        if split == "u1…u5":
            kept += [
                report(f"{split}, RMSE with defaults", "0.920", mean["lowdyn"] / 0.920, 1),
                report(f"{split}, RMSE tuned on the validation share", "0.915", mean["lowdyn tuned"] / 0.915, 1),
            ]
        kept += [
            report(
                f"{split}, RMSE with defaults",
                "that of Surprise's SVD++",
                mean["lowdyn"] / mean["Surprise SVD++"],
                1,
                f"error (RMSE) of a fit to MovieLens-100K, {split}",
            ),
            report(
                f"{split}, time of a fit",
                "that of Surprise's SVD++",
                middle["lowdyn"] / middle["Surprise SVD++"],
                0.2,
                f"time of a fit to MovieLens-100K, {split}",
            ),
        ]
    finish(kept)


if __name__ == "__main__":
    main()
