"""What the parameters of an estimator may be; looked at when it is fitted, as scikit-learn does."""

from __future__ import annotations

from typing import Any

from lowdyn.arguments import checked_choice, checked_count, checked_flag, checked_number


def check_parameters(estimator: Any) -> None:
    """Refuse parameters of a DeepMatrixCompletion that cannot be meant: ValueError or TypeError that names one."""
    checked_count("rank", estimator.rank, at_least=1)
    checked_count("depth", estimator.depth, at_least=2)
    checked_count("max_iter", estimator.max_iter, at_least=1)
    checked_choice("center", estimator.center, ("bias", "mean", "none"))
    for name in ("init_scale", "discrepant_ratio", "validation_fraction"):
        if checked_number(name, getattr(estimator, name)) <= 0:
            raise ValueError(f"{name} must be above 0, got {getattr(estimator, name)}")
    checked_number("validation_fraction", estimator.validation_fraction, below=1.0)
    for name in ("early_stopping", "warm_start"):
        checked_flag(name, getattr(estimator, name))
    for name in ("regularization", "tol"):
        checked_number(name, getattr(estimator, name), at_least=0.0)
