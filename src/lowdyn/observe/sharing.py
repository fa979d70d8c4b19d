"""Work on weights that lie spread over processes (FSDP2), divided among these processes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, distributed

from lowdyn.observe.following import Followed, Seen


def looks(followed: Sequence[Followed], step: int) -> list[Seen]:
    """Return what each of ``followed`` sees at ``step``; every process gets all, and looks at its share.

    Weights are gathered whole in rounds of one for each process, which then look at the same time: the gathering takes
    all of them. Weights that each process holds anyway are looked at by each. RuntimeError, on all processes, where
    the look of one failed.
    """
    owners = owners_of(followed)
    seen: dict[int, Seen] = {place: one(step) for place, one in enumerate(followed) if place not in owners}
    if not owners:
        return [seen[place] for place in range(len(followed))]
    processes, rank = distributed.get_world_size(), distributed.get_rank()
    places, mine, failed = list(owners), dict[int, Seen](), dict[int, str]()
    for first in range(0, len(places), processes):
        own: tuple[int, Tensor] | None = None
        for place in places[first : first + processes]:
            weight = followed[place].matrix()
            own = (place, weight) if owners[place] == rank else own
            del weight
        if own is not None:
            try:
                mine[own[0]] = {name: value.cpu() for name, value in followed[own[0]].look(own[1], step).items()}
            except Exception as error:  # the others wait for an answer
                failed[own[0]] = f"{type(error).__name__}: {error}"
    everyone: list[tuple[dict[int, Seen], dict[int, str]]] = [({}, {})] * processes
    distributed.all_gather_object(everyone, (mine, failed))
    for process, (found, failures) in enumerate(everyone):
        for text in failures.values():
            raise RuntimeError(f"{text} (on process {process})")
        seen |= found
    return [seen[place] for place in range(len(followed))]


def owners_of(followed: Sequence[Followed]) -> dict[int, int]:
    """Return which process looks at which of ``followed``, by place, dearest first; empty where none is shared.

    Neighbours in this order cost about the same, so that the processes of a round finish together.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return {}
    processes = distributed.get_world_size()
    shared = [place for place, one in enumerate(followed) if one.matrix.spread == processes > 1]
    shared.sort(key=lambda place: -_cost(followed[place].matrix.shape))
    return {place: turn % processes for turn, place in enumerate(shared)}


def _cost(shape: tuple[int, ...]) -> int:
    rows, columns = shape[-2:]
    return rows * columns * min(rows, columns)


def states(followed: Sequence[Followed]) -> list[dict[str, Tensor]]:
    """Return the state of each of ``followed``, from the process that looks at it; every process must call."""
    owners = owners_of(followed)
    found = []
    for place, one in enumerate(followed):
        held = [one.state() if owners.get(place, distributed_rank()) == distributed_rank() else None]
        if place in owners:
            distributed.broadcast_object_list(held, src=owners[place])
        assert held[0] is not None
        found.append(held[0])
    return found


def distributed_rank() -> int:
    """This process's number, 0 where there is one alone."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
