"""C6. Theorem, case 2 (d_y = r < d_x): the block form of every weight for all t."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowdyn.claims.block_form import check_blocks, check_large, draw_blocks
from lowdyn.claims.claim import Check, Datasets
from lowdyn.experiments.theorem import THEOREM_WIDE
from lowdyn.experiments.theorem_large import THEOREM_LARGE_WIDE

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C6"
PART = "predict"
TITLE = "Law of parsimony, wide case"
CLAIM = (
    "With d_y = r < d_x the same block form holds, with ρ_l(t) that only weight decay changes in layers below the "
    "last, and no inert block in the last."
)
SOURCE = "Lecture, theorem case 2; Yaras et al. 2023, arXiv 2306.01154"
PUBLISHED = "A theorem; no numbers."
DEVIATION = (
    "The lecture gives no settings: several (d, r, L, ε, λ), 4 000 steps (paper: 6 000) at 0.3 of the stable rate; and "
    "width 100, 300 or 1000 through the exact reduction, its first 200 steps held against the full network."
)
DIFFERENCE = ""
SCALE_NOTE = ""
EXPERIMENTS = (THEOREM_WIDE, THEOREM_LARGE_WIDE)


def check(datasets: Datasets) -> list[Check]:
    """Judge the residuals of the block form, and the reduced runs of larger width."""
    return check_blocks(datasets[THEOREM_WIDE.name]) + check_large(datasets[THEOREM_LARGE_WIDE.name])


def draw(datasets: Datasets) -> Figure:
    """Draw the residuals against the step."""
    return draw_blocks(datasets[THEOREM_WIDE.name], "Block form, wide case")
