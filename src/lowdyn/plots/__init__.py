"""The pictures: plain arrays in, plotly figures out; one function for each kind of picture.

Every figure shares one template: transparent backgrounds and mid-grey lines, which read on a light and on a dark page,
and the hues of Okabe and Ito, of which orange and sky blue are darkened: every colour has a contrast of 3 : 1 on both.

Names, labels and titles are plain text: ``<`` and ``&`` in them are shown, never read as markup. A value that is not
finite is a gap, and so is one that is not positive on a logarithmic axis. Numbers are kept as float32 (seven digits)
where its range allows, which keeps a page of many figures small.
"""

from lowdyn.plots.embedding import embeddings
from lowdyn.plots.lines import Series, curves, layer_curves
from lowdyn.plots.surface import surfaces
from lowdyn.plots.template import PALETTE

__all__ = ["PALETTE", "Series", "curves", "embeddings", "layer_curves", "surfaces"]
