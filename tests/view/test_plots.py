"""The figures show the map's own numbers, named, signed and escaped."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from scipy import stats
from synthetic import attribution, dose, outcome, priced, result, summary

from star_tl.errors import StarError
from star_tl.evaluation.sweep import Comparison
from star_tl.locus import COMPONENTS
from star_tl.view import plots
from star_tl.view.plots import (
    ARM_COLOURS,
    BLUE,
    OTHER_ARM,
    SIGN,
    on_dark,
    percent,
    plot_arms,
    plot_choice,
    plot_dose,
    plot_effects,
    plot_frontier,
    plot_heads,
    plot_layers,
    plot_loci,
    plot_outcome,
    plot_outcome_heads,
    plot_tokens,
    signed,
    visible,
)
from star_tl.view.plots.look import finish

ATTR = attribution()


def close(shown, expected) -> bool:
    return np.allclose(np.asarray(shown, dtype=float), np.asarray(expected, dtype=float), atol=1e-6, equal_nan=True)


def test_layers_show_every_component_apart_by_kind():
    fig = plot_layers(ATTR)
    gain, residual, writes = fig.data
    expected = ATTR.layer_scores()
    assert close(gain.z[:, 0], ATTR.choose_layer().gain)
    assert [row for row, (text,) in enumerate(gain.text) if "★" in text] == [ATTR.choose_layer().layer]
    assert list(residual.x) == ["resid_mid", "resid_post"], "resid_pre is resid_post of the layer below"
    assert list(writes.x) == ["attn_out", "mlp_out"]
    assert close(residual.z, expected[1:3].T)
    assert close(writes.z, expected[3:].T)
    assert residual.coloraxis != writes.coloraxis, "residual and writes differ in magnitude"
    assert "three colour scales" in fig.layout.title.subtitle.text
    assert writes.hovertemplate.startswith("blocks.%{y}.hook_%{x}<br>layer %{y}<br>score")
    assert float(writes.text[5][0].replace("−", "-")) == pytest.approx(writes.z[5][0], abs=5e-4)


@pytest.mark.parametrize("figure", [plot_layers, plot_heads, plot_tokens, plot_choice])
def test_layer_zero_is_at_the_bottom_and_the_sign_is_said(figure):
    fig = figure(ATTR)
    low, high = fig.layout.yaxis.range
    assert low < 0 < ATTR.n_layers - 1 < high
    assert list(fig.data[0].y) == list(range(ATTR.n_layers))
    assert SIGN in fig.layout.title.subtitle.text
    assert "nats" in fig.to_json()


@pytest.mark.parametrize("figure", [plot_layers, plot_heads, plot_tokens])
def test_colours_are_centred_at_zero(figure):
    fig = figure(ATTR)
    for trace in fig.data:
        axis = fig.layout[trace.coloraxis or "coloraxis"]
        assert axis.cmin == -axis.cmax
        assert axis.cmax == pytest.approx(np.abs(trace.z).max())
        assert axis.colorbar.title.text in ("score (nats)", "gain (nats)")


def test_a_map_of_zeros_can_be_drawn():
    empty = dataclasses.replace(
        ATTR, scores=torch.zeros_like(ATTR.scores), head_scores=torch.zeros_like(ATTR.head_scores)
    )
    for figure in (plot_layers, plot_heads, plot_tokens, plot_choice):
        figure(empty).to_json()


def test_heads_show_the_sum_over_positions():
    fig = plot_heads(ATTR)
    assert close(fig.data[0].z, ATTR.head_layer_scores())
    assert np.unravel_index(np.argmax(fig.data[0].z), fig.data[0].z.shape) == (5, 2)
    assert "blocks.%{y}.attn.hook_z" in fig.data[0].hovertemplate


@pytest.mark.parametrize(
    ("figure", "scores"),
    [
        (plot_layers, ATTR.scores[:, 1:3].sum(-1).transpose(1, 2)),
        (plot_heads, ATTR.head_scores.sum(-1)),
        (plot_tokens, ATTR.component("resid_post")[..., ATTR.prompt_end - ATTR.window : ATTR.prompt_end]),
    ],
)
def test_hovering_tells_hook_score_and_interval(figure, scores):
    shown = figure(ATTR).data[-2 if figure is plot_layers else 0]
    for part in ("blocks.%{y}.", "layer %{y}", "score %{z", "95 % interval %{customdata[0]"):
        assert part in shown.hovertemplate
    values = scores[:, 5, -1].double().numpy()
    expected = stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=1).confidence_interval
    assert shown.customdata[5, -1] == pytest.approx(list(expected), abs=0.15 * np.ptp(values))


def test_a_single_pair_has_no_interval():
    assert "interval" not in plot_tokens(ATTR, pair=0).data[0].hovertemplate


@pytest.mark.parametrize(
    ("score", "shown"), [(0.1234, "+0.123"), (-0.1234, "−0.123"), (-0.0001, "0.000"), (0.0, "0.000")]
)
def test_scores_have_a_sign_unless_they_round_to_zero(score, shown):
    assert signed(score) == shown


def test_a_figure_can_be_turned_dark_and_the_original_stays():
    for light in (plot_layers(ATTR), comparison().plot()):
        before = json.loads(light.to_json())
        dark = on_dark(light).to_json()
        assert "#F7F7F7" in light.to_json()
        assert "#F7F7F7" not in dark
        assert json.loads(light.to_json()) == before


def test_tokens_of_one_pair_are_its_prompt_and_positive_reply():
    fig = plot_tokens(ATTR, pair=0, component="attn_out")
    start, end = ATTR.spans[0][0].start, ATTR.prompt_end
    ticks = fig.layout.xaxis
    assert close(fig.data[0].z, ATTR.component("attn_out")[0, :, start : end + 3])
    assert list(ticks.tickvals) == list(range(start - end, 3)), "positions count from the prompt's end"
    assert ticks.ticktext[0] == "&lt;|begin_of_text|&gt;"
    assert "␣&lt;b&gt;low&lt;/b&gt;" in ticks.ticktext
    assert "&#36;" in ticks.ticktext
    assert ticks.ticktext[-4:] == ("↵↵", "So", "␣sorry", ".")
    assert "No" not in ticks.ticktext, "the negative reply stays out"
    assert [a.text for a in fig.layout.annotations] == ["system", "user 1", "header", "positive reply"]
    assert "position -1, header<br>token ↵↵" in fig.data[0].text[0]


def test_the_mean_names_a_token_only_where_all_pairs_agree():
    fig = plot_tokens(ATTR)
    end, window = ATTR.prompt_end, ATTR.window
    assert close(fig.data[0].z, ATTR.component("resid_post").mean(0)[:, end - window : end])
    ticks = fig.layout.xaxis.ticktext
    assert ticks[0] == "-6", "this token differs between pairs"
    assert ticks[-1] == "↵↵  -1"
    assert "&lt;|eot_id|&gt;  -4" in ticks
    assert [a.text for a in fig.layout.annotations] == ["user 1", "header"]


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"pair": 12}, "use 0 to 11"),
        ({"pair": -13}, "use 0 to 11"),
        ({"component": "hook_z"}, "Known: attn_out, mlp_out"),
    ],
)
def test_what_is_not_in_the_map_is_refused(wrong, remedy):
    with pytest.raises(StarError, match=remedy):
        plot_tokens(ATTR, **wrong)


def test_every_component_has_a_token_map():
    for component in COMPONENTS:
        assert f"hook_{component}" in plot_tokens(ATTR, component=component).layout.title.subtitle.text


def test_the_chosen_layer_stands_out():
    fig, choice = plot_choice(ATTR), ATTR.choose_layer()
    bars = fig.data[0]
    assert choice.layer == 5
    assert [layer for layer, colour in enumerate(bars.marker.color) if colour == BLUE] == [5]
    assert close(bars.x, choice.gain)
    assert close(bars.x + bars.error_x.array, choice.high)
    assert close(bars.x - bars.error_x.arrayminus, choice.low)
    assert close(bars.customdata[:, 2], 100 * choice.frequency)
    share = percent(float(choice.frequency[5]))
    assert any("chosen" in a.text and share in a.text and a.y == 5 for a in fig.layout.annotations)


def tied_map(pairs: int) -> object:
    """Layers 4 to 6 gain the same but for noise."""
    noise = 0.02 * torch.randn(pairs, 8, generator=torch.Generator().manual_seed(0))
    effects = noise - noise.mean(0) + torch.tensor([0.0, 0, 0, 0, 0.05, 0.0525, 0.0525, 0])
    directions, gradients, drift = priced(effects, torch.full_like(effects, 0.1))
    made = attribution(n_pairs=pairs)
    return dataclasses.replace(made, differences=directions, gradients=gradients, drift_gradients=drift)


def test_a_tie_is_shown_as_one_and_nothing_as_chosen():
    attr = tied_map(12)
    choice, fig = attr.choose_layer(), plot_choice(attr)
    assert not choice.singled_out
    assert len(choice.tied) > 1
    coloured = tuple(layer for layer, colour in enumerate(fig.data[0].marker.color) if colour == BLUE)
    assert coloured == choice.tied
    assert "No one layer" in fig.layout.title.text
    assert "tie" in fig.layout.title.text
    for figure in (fig, plot_layers(attr)):
        assert "chosen" not in str(figure.to_dict())


@pytest.mark.parametrize(("null", "side"), [(0.01, "left"), (10.0, "right")])
def test_what_the_dotted_line_is_stands_where_there_is_room(monkeypatch, null, side):
    choice = dataclasses.replace(ATTR.choose_layer(), null=null)
    monkeypatch.setattr(type(ATTR), "choose_layer", lambda self, **options: choice)
    (words,) = (a for a in plot_choice(ATTR).layout.annotations if "random directions" in a.text)
    assert words.xanchor == side


def test_the_title_calls_a_layer_the_most_only_where_none_gains_more(monkeypatch):
    choice = ATTR.choose_layer()
    above = choice.gain.clone()
    above[choice.layer + 1] = 1.02 * choice.gain[choice.layer]
    for gain, said in ((choice.gain, "buys most of"), (above, "buys about the most of")):
        made = dataclasses.replace(choice, gain=gain)
        monkeypatch.setattr(type(ATTR), "choose_layer", lambda self, made=made, **options: made)
        assert said in plot_choice(ATTR).layout.title.text


def test_what_is_long_in_a_subtitle_goes_on_below():
    fig = finish(go.Figure(), "Title", "word " * 60, 620, 500)
    lines = fig.layout.title.subtitle.text.split("<br>")
    assert max(map(len, lines)) * 6.2 < 650
    assert (fig.layout.height, fig.layout.margin.t) == (500 + 17 * (len(lines) - 1), 92 + 17 * (len(lines) - 1))
    unbroken = finish(go.Figure(), "Title", "", 620, 500)
    unbroken.layout.title.subtitle.text = "word " * 60
    narrow, expected = (plots.restyle(figure, width=5).layout for figure in (fig, unbroken))
    assert narrow.title == expected.title
    assert (narrow.height, narrow.margin.t) == pytest.approx((expected.height, expected.margin.t))


def test_names_beside_the_frontier_stand_apart_in_the_order_of_their_points():
    names = [f"way {i}" for i in range(13)]
    rows = {"difference": [0.1 + 0.001 * i for i in range(13)], "low": -0.2, "high": 0.6, "drift": 0.08}
    table = pd.DataFrame({"measure": "markers", "condition": names, **rows})
    words = plot_frontier(table, "markers").layout.annotations
    assert [a.text for a in words] == names
    heights = np.array([a.ay for a in words])
    assert np.diff(heights).min() * 370 / 0.8 > 17, "a line of words each"
    assert min(a.ax for a in words) > table.drift.max()


def test_few_pairs_are_plotted_without_resamples():
    fig = plot_choice(tied_map(5))
    assert "Too few pairs to single out a layer" in fig.layout.title.text
    assert "chosen" not in str(fig.to_dict())
    assert "resamples" not in str(fig.to_dict())
    assert fig.data[0].error_x.array is None


def test_dose_is_in_order_with_drift_on_an_axis_of_its_own():
    fig = plot_dose(dose())
    rate, coherent, drift = fig.data
    assert list(rate.x) == [0.0, 0.5, 1.0, 2.0, 4.0]
    assert close(rate.y, [36, 62, 89, 71, 5])
    assert close(rate.error_y.array, [6, 8, 5, 7, 5])
    assert close(coherent.y, [98, 98, 96, 77, 5])
    assert close(drift.y, [0, 0.03, 0.11, 0.6, 4.2])
    assert drift.yaxis == "y2"
    assert "nats per token" in fig.layout.yaxis2.title.text
    assert plot_dose(dose().drop(columns=["low_rate", "high_rate"])).data[0].error_y.array is None


def test_arms_have_their_rates_intervals_and_colours():
    fig = plot_arms(summary())
    rates, drift = fig.data
    assert close(rates.x, [36, 89, 38, 37, 12, 93])
    assert close(rates.error_x.array, [5] * 6)
    assert close(rates.error_x.arrayminus, [6] * 6)
    assert list(rates.marker.color) == [ARM_COLOURS[arm] for arm in summary().arm]
    assert rates.y[3] == "last ranked layer"
    assert fig.layout.yaxis.autorange == "reversed"
    assert drift.text[4] == "3.40"
    assert [a.text for a in fig.layout.annotations][1] == f"<b>{percent(0.89)}</b>"


def test_effects_are_differences_with_intervals_and_no_reference():
    fig = plot_effects(summary())
    (points,) = fig.data
    assert "unsteered" not in list(points.y)
    assert close(points.x, [53.1, 2, 1, -24, 57])
    assert close(points.x + points.error_x.array, [61.7, 8.5, 6, -17, 64])
    assert list(points.marker.color) == [ARM_COLOURS[arm] for arm in summary().arm][1:]
    assert [a.text for a in fig.layout.annotations if a.text][3] == "<b>−24</b>"


def comparison() -> Comparison:
    rows = [("unsteered", "", -1, 0.0, False)] * 2
    rows += [
        ("steered", f"blocks.{layer}.hook_resid_post @ -1", layer, x, True) for layer in (1, 5) for x in (2.0, 1.0)
    ]
    frame = pd.DataFrame(rows, columns=["arm", "locus", "layer", "strength", "shows"])
    return Comparison(
        "<b>hope</b>", frame.assign(positions="locus", coherent=True, drift=frame.strength / 10, text="x")
    )


def test_places_are_compared_in_order_of_strength_by_colour_dash_and_symbol():
    fig = plot_loci(comparison())
    first, cost, second, _, unsteered = fig.data
    assert list(first.x) == [1.0, 2.0]
    assert close(cost.y, [0.1, 0.2])
    assert len({(t.line.color, t.line.dash, t.marker.symbol) for t in (first, second)}) == 2
    assert list(unsteered.y) == [0, 0]
    assert first.line.color != second.line.color
    assert first.line.dash != second.line.dash
    assert "<b>hope" not in fig.layout.title.text


def test_a_comparison_and_a_vector_show_themselves_in_a_cell_as_text():
    shown = comparison()._repr_html_()
    assert "<b>hope" not in shown
    assert "blocks.5.hook_resid_post @ -1" in shown
    assert "100%" in shown
    vector = dataclasses.replace(result().vector, trait="<i>kind</i>")
    assert "<i>kind" not in vector._repr_html_()
    assert "vector.hooks" in vector._repr_html_()


def test_arms_may_be_unknown_or_unmeasured():
    table = summary().head(2).assign(arm=["unsteered", "<i>mine</i>"], drift=float("nan"), low_rate=float("nan"))
    fig = plot_arms(table)
    assert fig.data[0].y[1] == "&lt;i&gt;mine&lt;/i&gt;"
    assert fig.data[0].marker.color[1] == OTHER_ARM
    assert list(fig.data[1].text) == ["–", "–"]


@pytest.mark.parametrize(
    ("token", "shown"),
    [(" I", "␣I"), ("\n\n", "↵↵"), ("\t", "⇥"), ("", "∅"), ("<|eot_id|>", "&lt;|eot_id|&gt;"), ("&lt;", "&amp;lt;")],
)
def test_tokens_are_visible_and_escaped(token, shown):
    assert visible(token) == shown


def test_a_trait_name_cannot_become_markup():
    fig = plot_heads(dataclasses.replace(ATTR, trait="<b>x</b>"))
    assert "&lt;b&gt;x&lt;/b&gt;" in fig.layout.title.text


def test_the_map_plots_itself():
    assert ATTR.plot() == plot_layers(ATTR)
    assert ATTR.plot_heads() == plot_heads(ATTR)
    assert ATTR.plot_tokens(pair=1) == plot_tokens(ATTR, 1)
    assert ATTR.plot_choice() == plot_choice(ATTR)


def test_an_outcome_map_shows_its_gains_with_their_errors():
    found = outcome()
    fig = plot_outcome(found)
    (cells,) = fig.data
    assert close(cells.z, found.gains())
    assert close(cells.customdata, found.errors())
    assert list(cells.x) == ["-3", "-2", "-1", "generated"]
    assert "kind &lt;words&gt;" in fig.layout.title.text
    assert "48 replies" in fig.layout.title.subtitle.text
    assert fig.layout.coloraxis.cmin == -fig.layout.coloraxis.cmax
    assert found.plot() == fig


def test_heads_of_an_outcome_map_are_those_of_the_position_asked_for():
    found = outcome()
    for positions, place in (("generated", 3), (-2, 1)):
        fig = plot_outcome_heads(found, positions)
        assert close(fig.data[0].z, found.gains("z")[:, place])
        assert close(fig.data[0].customdata, found.errors("z")[:, place])
        assert found.plot_heads(positions) == fig
    with pytest.raises(StarError, match="use 'generated' or -3 to -1"):
        plot_outcome_heads(found, -4)


def only(*points: str):
    """A map that was made with these hook points alone, as ``attribute(hook_points=...)`` makes it."""
    scores = ATTR.scores.clone()
    for i, name in enumerate(COMPONENTS):
        if name not in points:
            scores[:, i] = torch.nan
    heads = ATTR.head_scores if "z" in points else torch.full_like(ATTR.head_scores, torch.nan)
    return dataclasses.replace(ATTR, scores=scores, head_scores=heads)


@pytest.mark.parametrize("points", [("resid_post",), ("attn_out", "z"), ("resid_pre", "mlp_out")])
def test_a_map_of_few_hook_points_is_drawn_without_the_others_and_centred(points):
    attr = only(*points)
    fig = plot_layers(attr)
    names = [name for trace in fig.data[1:] for name in trace.x]
    assert names == [c for c in COMPONENTS if c in points]
    assert "nan" not in fig.to_json().lower().replace("nanosecond", "")
    for trace in fig.data:
        axis = fig.layout[trace.coloraxis]
        assert axis.cmin == -axis.cmax
        assert axis.cmax == pytest.approx(np.abs(trace.z).max())
    tokens = plot_tokens(attr)
    assert np.isfinite(tokens.data[0].z).all()
    if "z" not in points:
        with pytest.raises(StarError, match="hook_points that include 'z'"):
            plot_heads(attr)


def test_names_of_tokens_stand_under_their_own_columns():
    assert plot_tokens(ATTR).layout.xaxis.tickangle == -90, "a slanted one ends under its column and reads as the next"


def test_chosen_layers_keep_their_numbers():
    fig = plot_heads(ATTR, layers=[2, 5])
    assert list(fig.data[0].y) == [2, 5]
    assert close(fig.data[0].z, ATTR.head_layer_scores()[[2, 5]])
    assert list(plot_layers(ATTR, layers=(5,), numbers=False).data[0].y) == [5]
    with pytest.raises(StarError, match="0 to 7"):
        plot_layers(ATTR, layers=[8])


def test_on_paper_ink_is_black_and_the_width_is_in_inches():
    fig = ATTR.plot(style="paper", width=3.3)
    assert fig.layout.font.color == "#000000"
    assert fig.layout.paper_bgcolor == "#FFFFFF"
    assert fig.layout.width == pytest.approx(3.3 * 96)
    assert fig.layout.font.size >= 7 * 96 / 72, "7 points"
    assert ATTR.plot_heads(style="dark").layout.coloraxis.colorscale[2][1] == "#22262B"
    for wrong in ({"style": "print"}, {"width": 300}):
        with pytest.raises(StarError, match=r"style|inches"):
            ATTR.plot(**wrong)


@pytest.mark.parametrize(("layers", "heads"), [(32, 32), (128, 64)])
def test_a_deep_model_fits_a_page(layers, heads):
    deep = attribution(n_pairs=8, layers=layers, heads=heads, peak=20)
    assert plot_heads(deep).layout.height < 1300
    fig = plot_layers(deep)
    assert fig.layout.height < 1300
    assert layers / fig.layout.yaxis.dtick <= 24, "labels have room"


@pytest.mark.parametrize("name", [name for name in plots.__all__ if name.startswith("plot_")])
def test_every_figure_has_an_example_that_names_its_keywords(name):
    """The example calls the function, or the method of a result that draws it, with arguments that it takes."""
    function = getattr(plots, name)
    assert {"style", "width"} & set(inspect.signature(function, follow_wrapped=False).parameters) == {"style", "width"}
    examples = re.findall(r"^ +(.*?\bplot\w*\(.*)$", function.__doc__, re.M)
    assert examples, "show how it is called"
    for call in (node for line in examples for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call)):
        if not ast.unparse(call.func).rpartition(".")[2].startswith("plot"):
            continue
        known = {"style", "width", *inspect.signature(function).parameters}
        assert {keyword.arg for keyword in call.keywords} <= known
