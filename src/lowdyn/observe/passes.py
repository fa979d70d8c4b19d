"""Passes over labelled batches: what is accumulated of every layer's features, and what is measured with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from lowdyn.observe.collapse import CollapsePass, classifier_weight
from lowdyn.observe.draws import draws_undone
from lowdyn.observe.features import Batches, Pool, checked_inputs, checked_labels, run_observed
from lowdyn.observe.linear_probe import LinearProbe
from lowdyn.observe.moments import ClassMoments, TotalMoments, merge_ranks
from lowdyn.observe.processes import Elsewhere, raise_together, sharded, told_by_all

WIDEST = 16_384  # features wider than this have no rank and no linear probe: their scatter would be 2 GiB


@dataclass(frozen=True)
class Passes:
    """The layers of ``model`` to look at, and how; the input of the module ``classifier`` is a layer too."""

    model: nn.Module
    num_classes: int
    layers: str | None
    pool: Pool
    classifier: str | None = None
    distributed: bool = False

    def names(self, loader: Batches) -> list[str]:
        """Return the names of the layers, from the first batch."""
        found: list[str] = []

        def first() -> None:
            with draws_undone(loader, self._parameter):
                batch = next(self._batches(loader), None)
                if batch is None:
                    raise ValueError("the loader gave no batch")
                self._run(batch[0], lambda name, _: found.append(name))

        self._together(first, lambda: [(name, 0) for name in found])
        return found

    def moments(self, loader: Batches, *, totals: bool) -> tuple[dict[str, ClassMoments], dict[str, TotalMoments]]:
        """Return the class moments of every layer, and with ``totals`` the scatter matrices of those not too wide."""
        by_class: dict[str, ClassMoments] = {}
        of_all: dict[str, TotalMoments] = {}

        def take(name: str, features: Tensor, labels: Tensor) -> None:
            width = features.shape[1]
            if name not in by_class:
                by_class[name] = ClassMoments(self.num_classes, width, features.device)
                if totals and width <= WIDEST:
                    of_all[name] = TotalMoments(width, features.device)
            by_class[name].update(features, labels)
            # Sums over finite features may overflow; only features that are not finite are refused.
            if not bool(by_class[name].squares.isfinite().all()) and not bool(features.isfinite().all()):
                raise ValueError(f"features of {name!r} hold NaN or infinity")
            if name in of_all:
                of_all[name].update(features)

        def look() -> None:
            self._go_through(loader, take)
            if not by_class:
                raise ValueError("the loader gave no batch")

        self._together(look, lambda: [(name, one.shift.shape[1]) for name, one in by_class.items()])
        self._merge([*by_class.values(), *of_all.values()])
        return by_class, of_all

    def collapse(
        self, loader: Batches, moments: Mapping[str, ClassMoments], *, balanced: bool
    ) -> list[dict[str, float]]:
        """Return NC1 to NC4 of every layer, from a second pass over the samples of ``moments``."""
        seconds = {name: CollapsePass(moment, balanced=balanced) for name, moment in moments.items()}
        nearest: dict[str, Tensor] = {}
        wrong = torch.zeros(len(seconds), dtype=torch.float64)

        def take(name: str, features: Tensor, labels: Tensor) -> None:
            nearest[name] = seconds[name].nearest(features, labels)

        def compare(outputs: Tensor, _: Tensor) -> None:
            if outputs.shape[1:] != (self.num_classes,):  # no answers to compare with
                wrong.fill_(torch.nan)
                return
            answers = outputs.argmax(dim=1)
            wrong.add_(torch.stack([(nearest[name] != answers.to(nearest[name])).sum().cpu() for name in seconds]))

        self._together(lambda: self._go_through(loader, take, compare))
        self._merge([one.projected for one in seconds.values()])
        self._add(wrong)
        measured = []
        for (name, one), errors in zip(seconds.items(), wrong.tolist(), strict=True):
            nc3 = float("nan")
            if self.classifier is not None and name == f"{self.classifier}.input":
                nc3 = one.nc3(classifier_weight(self.model, self.classifier))
            nc4 = errors / float(one.moments.counts.sum())
            measured.append({"nc1": one.nc1(name), "nc2": one.nc2(), "nc3": nc3, "nc4": nc4})
        return measured

    def accuracy(self, loader: Batches, probes: Mapping[str, LinearProbe]) -> dict[str, float]:
        """Return the share of samples of ``loader`` that each layer's linear classifier gets right."""
        right = torch.zeros(len(probes) + 1, dtype=torch.float64)  # the last counts the samples
        order = {name: index for index, name in enumerate(probes)}

        def take(name: str, features: Tensor, labels: Tensor) -> None:
            if name in order:
                right[order[name]] += (probes[name].predict(features) == labels).sum().cpu()

        def count(_: Tensor, labels: Tensor) -> None:
            right[-1] += len(labels)

        self._together(lambda: self._go_through(loader, take, count))
        self._add(right)
        if not right[-1]:
            raise ValueError("the loader of the linear probe gave no sample")
        return dict(zip(probes, (right[:-1] / right[-1]).tolist(), strict=True))

    def _run(self, inputs: Tensor, keep: Callable[[str, Tensor], None]) -> Tensor:
        return run_observed(self.model, inputs, keep, layers=self.layers, pool=self.pool, inputs_of=self.classifier)

    @property
    def _parameter(self) -> Tensor | None:
        return next(self.model.parameters(), None)

    def _go_through(
        self,
        loader: Batches,
        take: Callable[[str, Tensor, Tensor], None],
        answer: Callable[[Tensor, Tensor], None] | None = None,
    ) -> None:
        """Show each batch's features and labels to ``take``, layer by layer, then its outputs to ``answer``.

        With ``distributed``, what fails is raised after the last batch: other ranks may need this one's forward passes.
        """
        failed: list[Exception] = []

        def attempt(call: Callable[..., Any], *arguments: Any) -> Any:
            try:
                return None if failed else call(*arguments)
            except Exception as error:
                if not self.distributed:
                    raise
                failed.append(error)

        def show(name: str, features: Tensor, labels: Tensor) -> None:
            if len(features) != len(labels):
                raise ValueError(f"{len(labels)} labels came with {tuple(features.shape)} features of {name!r}")
            take(name, features, labels.to(features.device))

        with draws_undone(loader, self._parameter):
            for inputs, given in self._batches(loader):
                labels = attempt(checked_labels, given, self.num_classes)

                def keep(name: str, features: Tensor, labels: Tensor = labels) -> None:
                    attempt(show, name, features, labels)

                outputs = self._run(inputs, keep)
                if answer is not None:
                    attempt(answer, outputs, labels)
        if failed:
            raise failed[0]

    def _batches(self, loader: Batches) -> Iterator[tuple[Any, Any]]:
        """Yield the batches; with ``distributed``, of a sharded model, only once every rank has its own.

        A rank that went into a forward pass without the others would wait for them.
        """
        if not (self.distributed and sharded(self.model)):
            yield from loader
            return
        source: Iterator[tuple[Any, Any]] | None = None
        for place in count(1):
            batch, failed = None, None
            try:
                source = iter(loader) if source is None else source
                if (given := next(source, None)) is not None:
                    inputs, labels = given
                    batch = checked_inputs(inputs), labels
            except Exception as error:
                failed = error
            found = told_by_all("failed" if failed is not None else "none" if batch is None else "batch")
            if failed is not None:
                raise failed
            if batch is None and "batch" in found:
                raise ValueError(
                    f"the loader gave no batch {place}, that of process {found.index('batch')} did; a sharded model "
                    "takes as many on every process"
                )
            if "failed" in found or (batch is not None and "none" in found):
                raise Elsewhere
            if batch is None:
                return
            yield batch

    def _together(self, look: Callable[[], None], layers: Callable[[], list[tuple[str, int]]] = list) -> None:
        """Look; with ``distributed``, what fails on one rank is raised on all before they merge what they saw."""
        if not self.distributed:
            return look()
        failed = None
        try:
            look()
        except Exception as error:
            failed = error
        return raise_together(failed, layers())

    def _merge(self, moments: Sequence[ClassMoments | TotalMoments]) -> None:
        for one in moments if self.distributed else ():
            merge_ranks(one)

    def _add(self, counts: Tensor) -> None:
        if self.distributed:
            counts.copy_(torch.stack(told_by_all(counts)).sum(dim=0))
