"""The validation's figure says what `validation.json` says, legibly with all quantities, both families or one."""

from __future__ import annotations

from fractions import Fraction

import matplotlib as mpl
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from figures import FORMATS, to_bytes
from figures.style import BLACK, BLUE, GREY, PAGE_HEIGHT, PAGE_WIDTH
from figures.validation import validation_figure
from tests.figures import drawn
from tests.fracture.validations import counts, made_validation

FAMILIES = ("registers", "elimination")
COLUMNS = ("spearman", "auroc", "power", "false_positives")


@pytest.fixture(scope="module")
def validation():
    found = made_validation()
    # Scores that no other number is equal to, and a quantity that could hardly be measured.
    for shift, row in enumerate(found["measures"][:2]):
        for family in row["families"].values():
            for at, point in enumerate(family["points"]):
                point[1] = round(0.9 * point[0] + 0.01 * shift + 0.001 * at, 4)
    worst = [row for row in found["measures"] if row["status"] == "descriptive"][-1]["families"]["registers"]
    worst |= {"spearman": [0.4, None], "auroc": -0.0001, "power": counts(0, 0), "false_positives": counts(5, 5)}
    return found


@pytest.fixture(scope="module")
def figure(validation):
    return validation_figure(validation)


def panels(figure):
    return [axes for axes in figure.axes if axes.get_title()]


def matrix(figure):
    (axes,) = [axes for axes in figure.axes if not axes.get_title()]
    return axes


def cells(axes):
    """Place of the left upper corner, in cells → colour and text of the cell."""
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    found = {}
    for patch in axes.patches:
        assert isinstance(patch, Rectangle)
        (x, y), height = patch.get_xy(), patch.get_height()
        found[x, y] = (patch.get_facecolor()[:3], texts[x + 0.5, y + height / 2])
    return found


def rows_of(axes, families=2):
    """The cells of every row, from left to right."""
    found = cells(axes)
    heights = sorted({y for _, y in found})
    rows = [[found[place] for place in sorted(found) if place[1] == y] for y in heights]
    assert {len(row) for row in rows} == {families * len(COLUMNS)}
    return rows


def ordered(validation):
    statuses = ("calibrated", "diagnostic", "descriptive")
    return [row for status in statuses for row in validation["measures"] if row["status"] == status]


def test_every_score_is_drawn_at_its_realised_dose(figure, validation):
    titles = [f"{family}, {form}" for family in FAMILIES for form in ("by text", "inside")]
    assert [axes.get_title() for axes in panels(figure)] == titles
    headlines = {row["condition"]: row["families"] for row in validation["measures"][:2]}
    for at, axes in enumerate(panels(figure)):
        points = headlines[("text", "inside")[at % 2]][FAMILIES[at // 2]]["points"]
        assert sorted(drawn.points(axes)) == sorted((dose, score) for dose, score, _, _ in points)
        (line,) = [line for line in axes.lines if line.get_color() == GREY]
        assert list(line.get_xdata()) == list(line.get_ydata()), "the grey line is where score and dose are equal"


def test_organisms_of_other_kinds_have_marks_of_their_own_and_a_name(figure, validation):
    truth = {(pair["family"], pair["organism"]): pair["truth"] for pair in validation["pairs"]}
    legend = figure.legends[0]
    named = {
        text.get_text(): (line.get_color(), line.get_marker())
        for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    assert len(set(named.values())) == len(named)
    row = validation["measures"][0]
    shown = {name for family in FAMILIES for _, _, name, _ in row["families"][family]["points"]}
    others = {name for (family, name), kind in truth.items() if kind not in ("base", "attached", "dose")} & shown
    assert set(named) == {"doses, harmless, base itself", *others}
    assert "collapsed" not in named, "it has no realised dose here, and is in no panel"
    for family, axes in zip(FAMILIES, panels(figure)[::2], strict=True):
        looks = {(line.get_xdata()[0], line.get_ydata()[0]): line for line in axes.lines if len(line.get_xdata()) == 1}
        for dose, score, name, _ in row["families"][family]["points"]:
            expected = named[name] if name in others else (BLUE, "o")
            assert (looks[dose, score].get_color(), looks[dose, score].get_marker()) == expected


def test_points_without_a_dose_or_a_score_are_left_out():
    validation = made_validation(("registers",))
    points = validation["measures"][0]["families"]["registers"]["points"]
    points[:] = [[0.5, None, "dose_0.5", 0], [None, 0.5, "collapsed", 0]]
    first, second = panels(validation_figure(validation))
    assert drawn.points(first) == []
    assert [text.get_text() for text in first.texts] == ["no value"]
    assert len(drawn.points(second)) == 11


def test_scores_beyond_zero_and_one_are_within_the_axes():
    validation = made_validation(("registers",))
    validation["measures"][0]["families"]["registers"]["points"][3][1] = 1.7
    validation["measures"][1]["families"]["registers"]["points"][0][1] = -0.4
    for axes in panels(validation_figure(validation)):
        assert axes.get_ylim()[0] < -0.4
        assert axes.get_ylim()[1] > 1.7


def test_every_quantity_has_its_numbers_in_a_row_under_its_status(figure, validation):
    axes = matrix(figure)
    rows = rows_of(axes)
    assert len(rows) == len(validation["measures"]) == 43
    for row, found in zip(ordered(validation), rows, strict=True):
        expected = []
        for family in FAMILIES:
            of = row["families"][family]
            for key in COLUMNS[:2]:
                values = of[key] if isinstance(of[key], list) else [of[key]]
                expected.append("—" if None in values else f"{abs(min(values)):.2f}")
            expected += [f"{of[key]['k']}/{of[key]['n']}" if of[key]["n"] else "—" for key in COLUMNS[2:]]
        assert [text for _, text in found] == expected


def test_labels_stand_beside_their_rows_in_the_order_of_their_status(figure, validation):
    texts = [(text.get_text(), text.get_position()) for text in matrix(figure).texts]
    names = [(words.replace("\n", " "), y) for words, (x, y) in texts if x < -1]
    heights = [y for _, y in names]
    assert heights == sorted(heights)
    expected = []
    for status in ("calibrated", "diagnostic", "descriptive"):
        of_status = [row for row in validation["measures"] if row["status"] == status]
        expected += [f"{status} ({len(of_status)})", *(row["label"] for row in of_status)]
    assert [words for words, _ in names] == expected
    conditions = [words for words, (x, _) in texts if -1 < x < 0]
    said = {"given": "same chains", "own": "own chains"}
    assert conditions == [said.get(row["condition"], "") for row in ordered(validation)]


def test_a_better_number_is_darker_and_a_missing_one_is_white(figure):
    rows = rows_of(matrix(figure))
    for column in range(len(COLUMNS)):
        shades = {text: sum(colour) for colour, text in (row[column] for row in rows) if text != "—"}
        values = {text: Fraction(text) for text in shades}
        best_first = sorted(shades, key=lambda text: -values[text], reverse=COLUMNS[column] == "false_positives")
        assert [shades[text] for text in best_first] == sorted(shades.values()), COLUMNS[column]
    assert all(colour == (1, 1, 1) for row in rows for colour, text in row if text == "—")
    assert rows[-1][1] == ((1, 1, 1), "0.00"), "the worst AUROC, without a minus before 0"
    assert rows[-1][3] == ((1, 1, 1), "5/5")


def test_print_is_read_on_every_shade(figure):
    """WCAG 2.1, success criterion 1.4.3: a contrast of 4.5."""

    def luminance(colour):
        channels = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), channels, strict=True))

    darkest = min(luminance(colour) for colour, _ in cells(matrix(figure)).values())
    assert (darkest + 0.05) / (luminance(to_rgb(BLACK)) + 0.05) > 4.5


def hard(kind):
    if kind == "long names":
        validation = made_validation()
        for row in validation["measures"]:
            row["label"] = f"{row['label']}, as it is after a very long and winding explanation " * 3
        for pair in validation["pairs"]:
            pair["organism"] += "_with_a_name_that_goes_on_and_on"
        for row in validation["measures"]:
            for family in row["families"].values():
                for point in family["points"]:
                    point[2] += "_with_a_name_that_goes_on_and_on"
        return validation
    if kind == "a family that lacks most":
        validation = made_validation()
        for row in validation["measures"][2:]:
            del row["families"]["elimination"]
        return validation
    return made_validation(*((("elimination",),) if kind == "one family" else ()), seeds=(0, 1, 2))


@pytest.mark.parametrize("kind", ["three seeds", "one family", "long names", "a family that lacks most"])
def test_all_is_on_the_page_and_nothing_covers_a_text(kind):
    figure = validation_figure(hard(kind))
    assert drawn.outside(figure) == []
    assert drawn.overlapping(figure) == []
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 5
    assert figure.get_figwidth() <= PAGE_WIDTH
    assert figure.get_figheight() <= PAGE_HEIGHT or kind == "long names"


def test_what_a_family_has_not_is_a_dash():
    rows = rows_of(matrix(validation_figure(hard("a family that lacks most"))))
    assert [text for _, text in rows[-1][4:]] == ["—"] * 4
    assert "—" not in [text for _, text in rows[-1][:4]]


def test_a_status_without_a_quantity_has_no_heading():
    validation = made_validation()
    validation["measures"] = validation["measures"][:2]
    axes = matrix(validation_figure(validation))
    assert "calibrated (2)" in [text.get_text() for text in axes.texts]
    assert not any("d" in text.get_text() and "(0)" in text.get_text() for text in axes.texts)


def test_the_same_validation_gives_the_same_bytes_whatever_the_users_style(validation, figure):
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "black"}):
        again = validation_figure(validation)
    for format in FORMATS:
        assert to_bytes(again, format) == to_bytes(figure, format)
