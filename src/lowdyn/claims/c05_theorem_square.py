"""C5. Theorem, case 1 (d_y = d_x): the block form of every weight for all t."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowdyn.claims.block_form import check_blocks, check_large, draw_blocks
from lowdyn.claims.claim import Check, Datasets
from lowdyn.experiments.theorem import THEOREM_SQUARE
from lowdyn.experiments.theorem_large import THEOREM_LARGE_SQUARE

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C5"
PART = "predict"
TITLE = "Law of parsimony, square case"
CLAIM = (
    "With d_y = d_x and YXᵀ of rank r, W_l(t) = U_l diag(W̃_l(t), ρ_l(t) I) V_lᵀ with V_{l+1} = U_l fixed and "
    "W̃_l of size 2r x 2r, in every layer and for all t, with weight decay too."
)
SOURCE = "Lecture, theorem case 1; Yaras et al. 2023, arXiv 2306.01154"
PUBLISHED = "A theorem; no numbers."
DEVIATION = (
    "The lecture gives no settings: several (d, r, L, ε, λ), 4 000 steps (paper: 6 000) at 0.3 of the stable rate; and "
    "width 100, 300 or 1000 through the exact reduction, its first 200 steps held against the full network."
)
DIFFERENCE = ""
SCALE_NOTE = ""
EXPERIMENTS = (THEOREM_SQUARE, THEOREM_LARGE_SQUARE)


def check(datasets: Datasets) -> list[Check]:
    """Judge the residuals of the block form, and the reduced runs of larger width."""
    return check_blocks(datasets[THEOREM_SQUARE.name]) + check_large(datasets[THEOREM_LARGE_SQUARE.name])


def draw(datasets: Datasets) -> Figure:
    """Draw the residuals against the step."""
    return draw_blocks(datasets[THEOREM_SQUARE.name], "Block form, square case")
