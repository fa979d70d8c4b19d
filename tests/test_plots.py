import base64
import json
import math

import numpy as np
import pytest

from lowdyn.plots import PALETTE, Series, curves, embeddings, layer_curves, surfaces


def luminance(colour):
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", PALETTE)
@pytest.mark.parametrize("paper", ["#ffffff", "#fdfdfb", "#15181d"])
def test_every_colour_reads_on_both_pages(colour, paper):
    low, high = sorted((luminance(colour), luminance(paper)))
    assert (high + 0.05) / (low + 0.05) >= 3.0


def test_surfaces_lie_over_index_and_step():
    values = np.arange(12.0).reshape(4, 3)
    figure = surfaces([0, 10, 20, 30], {"σ": values, "∠v": values, "∠u": values})
    assert [trace.type for trace in figure.data] == ["surface"] * 3
    assert len({trace.scene for trace in figure.data}) == 3
    np.testing.assert_array_equal(figure.data[0].x, [1, 2, 3])
    np.testing.assert_array_equal(figure.data[0].y, [0, 10, 20, 30])
    np.testing.assert_allclose(figure.data[2].z, values)
    assert [note.text for note in figure.layout.annotations] == ["<b>σ</b>", "<b>∠v</b>", "<b>∠u</b>"]


def test_surfaces_keep_gaps_and_the_given_index():
    values = np.array([[1.0, np.nan], [np.inf, 2.0]])
    trace = surfaces([0, 1], {"σ": values}, index=[5, 9]).data[0]
    np.testing.assert_array_equal(trace.x, [5, 9])
    np.testing.assert_array_equal(np.isnan(trace.z), [[False, True], [True, False]])


@pytest.mark.parametrize("shape", [(3, 4), (4,), (4, 0)])
def test_surfaces_name_the_panel_that_does_not_fit(shape):
    with pytest.raises(ValueError, match=r"panel 'σ' has shape"):
        surfaces(range(4), {"σ": np.ones(shape)})


def test_surfaces_stack_on_a_narrow_page_and_return():
    panels = {str(k): np.ones((2, 2)) for k in range(9)}
    meta = surfaces([0, 1], panels).layout.meta
    assert meta["narrow"]["height"] > 2 * meta["wide"]["height"]
    assert meta["narrow"].keys() == meta["wide"].keys()
    assert {tuple(meta["narrow"][f"scene{k or ''}.domain"]["x"]) for k in (0, 2, 3, 9)} == {(0.0, 1.0)}
    assert len({tuple(meta["wide"][f"scene{k or ''}.domain"]["x"]) for k in (0, 2, 3, 9)}) == 3


def test_a_band_is_drawn_below_its_line_and_not_in_the_legend():
    one = Series("depth 3", [0, 1, 2], [2.0, 3.0, 4.0], low=[1.0, np.nan, 3.0], high=[3.0, 4.0, 5.0])
    band, line = curves([one], x_label="step", y_label="error").data
    np.testing.assert_array_equal(band.x, [0, 2, 2, 0])
    np.testing.assert_array_equal(band.y, [1, 3, 5, 3])
    assert (band.fill, band.showlegend, band.fillcolor) == ("toself", False, line.line.color)
    assert (line.name, line.showlegend, line.legendgroup) == ("depth 3", True, band.legendgroup)


def test_a_logarithmic_axis_drops_what_it_cannot_show():
    one = Series("loss", [0, 1, 10], [1.0, 0.0, -2.0], low=[0.5, -1.0, -3.0], high=[2.0, 0.1, -1.0])
    band, line = curves([one], x_label="step", y_label="loss", log_x=True, log_y=True).data
    np.testing.assert_array_equal(line.x, [np.nan, 1, 10])
    np.testing.assert_array_equal(line.y, [1, np.nan, np.nan])
    # The edge below zero ends at the smallest value drawn; where the whole band is below, it is gone.
    np.testing.assert_allclose(band.y, [0.1, 0.1])


def test_a_logarithmic_picture_of_zeros_is_empty_not_an_error():
    one = Series("loss", [0, 1], [0.0, 0.0], low=[0.0, 0.0], high=[0.0, 0.0])
    figure = curves([one], x_label="step", y_label="loss", log_y=True, limit=("tolerance", 0.0))
    assert np.isnan(figure.data[-1].y).all()
    assert len(figure.layout.shapes) == 0


def test_a_limit_is_a_labelled_line_over_the_whole_width():
    figure = curves([], x_label="step", y_label="error", log_y=True, limit=("tolerance <1e-6>", 1e-6))
    (line,) = figure.layout.shapes
    assert (line.xref, line.x0, line.x1, line.y0, line.y1) == ("paper", 0, 1, 1e-6, 1e-6)
    assert line.label.text == "tolerance &lt;1e-6&gt;"


def test_groups_share_a_colour_and_strokes_change_where_colours_repeat():
    pair = [Series("exact", [0], [1], group="L = 3"), Series("reduced", [0], [1], group="L = 3", dash=True)]
    more = [Series(f"run {k}", [0], [1]) for k in range(len(PALETTE))]
    lines = [trace.line for trace in curves(pair + more, x_label="x", y_label="y").data]
    assert (lines[0].color, lines[1].color) == (PALETTE[0], PALETTE[0])
    assert (lines[0].dash, lines[1].dash) == ("solid", "dash")
    assert len({(line.color, line.dash) for line in lines}) == len(lines)


@pytest.mark.parametrize(
    "series",
    [
        Series("a", [0, 1], [1.0]),
        Series("a", [0], [1.0], low=[0.0, 1.0], high=[2.0, 2.0]),
        Series("a", [0], [1.0], low=[0.0]),
    ],
)
def test_series_of_unequal_lengths_are_refused_by_name(series):
    with pytest.raises(ValueError, match="series 'a'"):
        curves([series], x_label="x", y_label="y")
    with pytest.raises(ValueError, match="series 'a'"):
        layer_curves({"linear": [series]}, y_label="D")


def test_layer_curves_share_scale_and_legend():
    def series(factor):
        return [Series(f"L = {n}", range(n), factor ** np.arange(n), group=str(n)) for n in (4, 6)]

    figure = layer_curves({"linear": series(0.1), "ReLU": series(0.5)}, y_label="D_l")
    assert [trace.showlegend for trace in figure.data] == [True, True, False, False]
    assert [trace.yaxis for trace in figure.data] == ["y", "y", "y2", "y2"]
    assert {axis.matches for axis in figure.select_yaxes()} == {"y"}
    assert {axis.type for axis in figure.select_yaxes()} == {"log"}
    assert {axis.dtick for axis in figure.select_xaxes()} == {1}
    assert figure.data[0].marker.symbol != figure.data[1].marker.symbol


def test_layer_curves_have_error_bars_that_stay_above_zero():
    one = Series("L = 3", [0, 1], [1.0, 0.1], low=[0.5, -0.2], high=[2.0, 0.4])
    bars = layer_curves({"ReLU": [one]}, y_label="D").data[0].error_y
    np.testing.assert_allclose(bars.array, [1.0, 0.3], rtol=1e-6)
    np.testing.assert_allclose(bars.arrayminus, [0.5, 0.0], atol=1e-8)


def test_panels_of_quantities_of_their_own_have_scales_of_their_own():
    panels = {name: [Series("hybrid", [0, 1, 2], [3.0, 2.0, 1.0])] for name in ("D", "rank", "accuracy", "S")}
    figure = layer_curves(panels, log_y={"D"}, x_label="further layers")
    assert [axis.type for axis in figure.select_yaxes()] == ["log", "linear", "linear", "linear"]
    assert {axis.matches for axis in figure.select_yaxes()} == {None}
    assert {axis.title.text for axis in figure.select_xaxes()} == {"further layers"}
    assert [trace.yaxis for trace in figure.data] == ["y", "y2", "y3", "y4"]


def test_surfaces_may_have_steps_of_their_own():
    values = {"short": np.ones((2, 3)), "long": np.ones((4, 5))}
    figure = surfaces({"short": [0, 9], "long": [0, 1, 2, 3]}, values)
    assert [list(surface.y) for surface in figure.data] == [[0, 9], [0, 1, 2, 3]]
    with pytest.raises(ValueError, match="panel 'long' has shape"):
        surfaces([0, 9], values)


def test_many_layers_have_fewer_ticks():
    assert layer_curves({"deep": [Series("a", range(40), np.ones(40))]}, y_label="D").layout.xaxis.dtick == 5


def test_embeddings_are_small_multiples_with_one_legend():
    points, labels = np.random.default_rng(0).normal(size=(30, 2)), np.repeat([0, 1, 2], 10)
    figure = embeddings(
        {"layer 0": (points, labels), "layer 1": (points, labels)}, class_names=["cat", "<dog>", "bird"]
    )
    assert [trace.name for trace in figure.data] == ["cat", "&lt;dog&gt;", "bird"] * 2
    assert [trace.showlegend for trace in figure.data] == [True] * 3 + [False] * 3
    np.testing.assert_allclose(figure.data[1].x, points[10:20, 0], rtol=1e-6)
    assert [axis.scaleanchor for axis in figure.select_yaxes()] == ["x", "x2"]
    assert len({(trace.marker.color, trace.marker.symbol) for trace in figure.data}) == 3


@pytest.mark.parametrize(
    ("points", "labels"), [(np.ones((3, 3)), [0, 0, 0]), (np.ones((3, 2)), [0, 0]), (np.ones(2), [0, 0])]
)
def test_embeddings_refuse_other_shapes(points, labels):
    with pytest.raises(ValueError, match="panel 'layer 0'"):
        embeddings({"layer 0": (points, labels)})


def test_embeddings_refuse_a_label_without_a_name():
    with pytest.raises(ValueError, match="label 2"):
        embeddings({"layer 0": (np.ones((2, 2)), [0, 2])}, class_names=["a", "b"])


@pytest.mark.parametrize(
    "draw", [lambda: surfaces([], {}), lambda: layer_curves({}, y_label="D"), lambda: embeddings({})]
)
def test_no_panels_are_an_empty_picture(draw):
    assert len(draw().data) == 0


def test_text_is_text():
    hostile = "<b>&</b>"
    shown = "&lt;b&gt;&amp;&lt;/b&gt;"
    figure = curves([Series(hostile, [0], [1])], x_label=hostile, y_label=hostile, title=hostile)
    layout = figure.layout
    assert {figure.data[0].name, layout.xaxis.title.text, layout.yaxis.title.text, layout.title.text} == {shown}


def test_numbers_are_small_in_the_file_and_survive_it():
    x, y = np.arange(10_000), np.random.default_rng(0).normal(size=10_000)
    text = curves([Series("noise", x, y)], x_label="step", y_label="y").to_json()
    assert len(text) < 12 * x.size
    trace = json.loads(text)["data"][0]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(trace["x"]["bdata"]), trace["x"]["dtype"]), x)
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(trace["y"]["bdata"]), trace["y"]["dtype"]), y, rtol=1e-6)


def test_values_beyond_float32_are_kept():
    y = [1e-300, 1e300]
    np.testing.assert_array_equal(curves([Series("a", [0, 1], y)], x_label="x", y_label="y").data[0].y, y)


def test_the_file_is_json_without_nan():
    figure = curves([Series("a", [0, 1], [math.nan, 1.0])], x_label="x", y_label="y")
    json.loads(figure.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_arrays_of_the_caller_are_left_alone():
    y = np.array([1.0, -1.0])
    curves([Series("a", [0, 1], y)], x_label="x", y_label="y", log_y=True)
    np.testing.assert_array_equal(y, [1.0, -1.0])
