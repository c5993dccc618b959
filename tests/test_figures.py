"""The look of a role: told apart without colour, readable with it, and named when it does not exist."""

import itertools

import matplotlib as mpl
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from kltutor import figures

ROLES = ["policy", "reference", "optimum", "exact"]
ESTIMATORS = ["k1", "k2", "k3"]


def luminance(color):
    """Relative luminance of WCAG 2.2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast_on_white(color):
    return 1.05 / (luminance(color) + 0.05)


def axes():
    return Figure().subplots()


def test_contrast_is_that_of_the_standard_at_its_ends():
    assert contrast_on_white("#000000") == pytest.approx(21)
    assert contrast_on_white("#FFFFFF") == pytest.approx(1)


def test_every_role_of_the_book_has_a_look():
    assert set(figures.ROLES) == {*ROLES, *ESTIMATORS}


@pytest.mark.parametrize("group", [ROLES, ESTIMATORS])
def test_dash_and_marker_tell_the_roles_apart_without_colour(group):
    for key in ("linestyle", "marker", "color"):
        assert len({figures.ROLES[role][key] for role in group}) == len(group), key


def test_the_markers_of_the_estimators_are_hollow_and_those_of_the_roles_are_not():
    for role in (*ROLES, *ESTIMATORS):
        (drawn,) = axes().plot([0, 1], [0, 1], **figures.dots(role))
        assert (drawn.get_markerfacecolor() == "none") == (role in ESTIMATORS)


@pytest.mark.parametrize("role", [*ROLES, *ESTIMATORS])
def test_lines_have_three_to_one_and_labels_four_and_a_half_to_one_on_white(role):
    ax = axes()
    (drawn,) = ax.plot([0, 1], [0, 1], **figures.line(role))
    figures.label(ax, 0.5, 0.25, "here", role)
    assert contrast_on_white(drawn.get_color()) >= 3
    assert contrast_on_white(ax.texts[0].get_color()) >= 4.5


@pytest.mark.parametrize("role", [*ROLES, *ESTIMATORS])
def test_lines_and_dots_draw_what_the_role_says(role):
    ax = axes()
    look = figures.ROLES[role]
    (plain,) = ax.plot([0, 1], [0, 1], **figures.line(role))
    (marked,) = ax.plot([0, 1], [0, 1], **figures.line(role, marker=True))
    (points,) = ax.plot([0, 1], [0, 1], **figures.dots(role))
    assert plain.get_linestyle() == marked.get_linestyle() == look["linestyle"]
    assert plain.get_marker() == "None"
    assert marked.get_marker() == points.get_marker() == look["marker"]
    assert points.get_linestyle() == "None"
    assert {line.get_color() for line in (plain, marked, points)} == {look["color"]}


def test_what_is_returned_may_be_changed_without_changing_the_role():
    figures.line("policy", marker=True)["color"] = "red"
    figures.dots("policy")["marker"] = "x"
    assert figures.line("policy", marker=True) == figures.ROLES["policy"]


@pytest.mark.parametrize("role", ["ref", "Policy", ""])
def test_an_unknown_role_is_an_error_that_lists_the_known_ones(role):
    ax = axes()
    for call in (figures.line, figures.dots, lambda r: figures.label(ax, 0, 0, "x", r)):
        with pytest.raises(ValueError, match=f"role is '{role}'; expected one of policy, reference, optimum"):
            call(role)
    assert not ax.texts


def test_finish_gives_title_and_both_labels_and_asks_for_all_three():
    ax = axes()
    figures.finish(ax, title="Larger beta, shorter leash", xlabel="beta", ylabel="KL, nats per sequence")
    assert (ax.get_title("left") or ax.get_title()) == "Larger beta, shorter leash"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("beta", "KL, nats per sequence")
    with pytest.raises(TypeError, match="ylabel"):
        figures.finish(ax, title="a", xlabel="b")


def test_a_label_stands_at_its_place():
    ax = axes()
    figures.label(ax, 2.0, 3.0, "policy", "policy", ha="right", va="top")
    (text,) = ax.texts
    assert (text.get_position(), text.get_text()) == ((2.0, 3.0), "policy")
    assert (text.get_ha(), text.get_va()) == ("right", "top")


def test_the_style_is_set_as_the_book_needs_it_and_again_without_harm():
    with mpl.rc_context():
        for _ in range(2):
            figures.use_style()
            assert list(mpl.rcParams["figure.figsize"]) == [6.4, 3.2]
            assert mpl.rcParams["svg.hashsalt"] == "kltutor"  # the same ids in every run
            assert not mpl.rcParams["axes.spines.top"]


def test_two_drawings_of_one_figure_are_the_same_bytes():
    from io import BytesIO

    def draw():
        with mpl.rc_context():
            figures.use_style()
            figure = Figure()
            ax = figure.subplots()
            for role in (*ROLES, *ESTIMATORS):
                ax.plot([0, 1, 2], [0, 1, 0], clip_on=True, **figures.line(role, marker=True))
            out = BytesIO()
            figure.savefig(out, format="svg", metadata={"Date": None})
            return out.getvalue()

    first, second = itertools.islice(iter(draw, None), 2)
    assert first == second


def test_a_table_prints_tensors_and_floats_alike():
    rows = [{"name": "k1", "value": torch.tensor(0.25, dtype=torch.float64)}, {"name": "k2", "value": 0.125}]
    text = figures.table(rows, ".3f").data
    assert [line.split("|")[2].strip() for line in text.splitlines()] == [
        "value",
        "--------:",
        "0.250",
        "0.125",
    ]


def test_a_table_leaves_strings_alone_also_those_that_look_like_numbers():
    rows = [
        {"version": "0.10", "share": "-.5", "value": 0.5, "count": 3, "mixed": "1e3"},
        {"version": "1.0", "share": ".25", "value": 0.25, "count": 12, "mixed": 0.25},
    ]
    _, ends, *lines = figures.table(rows, ".3f").data.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells == [["0.10", "-.5", "0.500", "3", "1e3"], ["1.0", ".25", "0.250", "12", "0.250"]]
    assert [end.strip("-") for end in ends.strip("|").split("|")] == [":", ":", ":", ":", ":"]
    assert [end.endswith(":") for end in ends.strip("|").split("|")] == [False, False, True, True, False]
