"""A fitted matrix completion that can be saved and loaded: which of its attributes go into the file and come back."""

from __future__ import annotations

import os
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from lowdyn.recovery import storage
from lowdyn.recovery.estimates import Estimates
from lowdyn.recovery.objective import Penalty
from lowdyn.recovery.observations import Values


class SavedEstimates(Estimates):
    """Estimates of a scikit-learn estimator, as a file. Attributes as of DeepMatrixCompletion."""

    loss_curve_: Values
    validation_curve_: Values
    regularization_: float
    n_iter_: int
    n_features_in_: int
    feature_names_in_: NDArray[np.object_]  # if the columns had names
    get_params: Any  # scikit-learn's

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to one safetensors file, parameters as JSON in its header, whole or not at all.

        A ``random_state`` that is a RandomState is not kept: the model that is loaded has None. ValueError or TypeError
        for parameters, set since the fit, that ``fit`` would refuse.

        >>> import tempfile
        >>> from lowdyn import DeepMatrixCompletion
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     DeepMatrixCompletion(rank=2).fit(np.eye(4, 3)).save(f"{folder}/model.safetensors")
        ...     DeepMatrixCompletion.load(f"{folder}/model.safetensors").rank
        2
        """
        check_is_fitted(self)
        arrays: dict[str, Any] = {"loss_curve_": self.loss_curve_, "validation_curve_": self.validation_curve_}
        arrays |= {"seen_starts": self._seen[0], "seen_columns": self._seen[1]}
        arrays |= {f"factor_{place}": one for place, one in enumerate(self._factors.arrays())}
        names = getattr(self, "feature_names_in_", None)
        numbers = {
            "mean": self.mean_,
            "range": self._range,
            "penalty": self._penalty,
            "n_iter": self.n_iter_,
            "regularization": self.regularization_,
            "depth": 2 + len(self._factors.cores),
            "feature_names": None if names is None else list(names),
        }
        storage.save(path, self.get_params(), numbers, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return a model that ``save``, whose example shows both, wrote.

        FileNotFoundError where no file is; ValueError for another file, in one line that names it and what is wrong.
        """
        parameters, numbers, arrays, factors = storage.load(path, cls().get_params())
        model = cls(**parameters)
        model.loss_curve_, model.validation_curve_ = arrays["loss_curve_"], arrays["validation_curve_"]
        model.regularization_, model.n_iter_ = numbers["regularization"], numbers["n_iter"]
        model._seen = arrays["seen_starts"], arrays["seen_columns"]
        model._hold(factors, numbers["mean"], tuple(numbers["range"]), Penalty(*numbers["penalty"]))
        model.n_features_in_ = len(factors.right)
        if numbers["feature_names"] is not None:
            model.feature_names_in_ = np.array(numbers["feature_names"], dtype=object)
        return model
