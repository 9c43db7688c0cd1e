"""The report: a page that stands alone, in which every trial, seed and number has its place."""

import dataclasses
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.synthetic import WHEN, configured, measured, snapshot, trial, usual

from densitune import density
from optimizer.errors import UsageError
from optimizer.show import page, report, response_model, search
from optimizer.show.axes import Axis, spanning
from optimizer.show.figures_search import Mark, limits
from optimizer.show.page import table, tag
from optimizer.snapshot import PhaseRows, Snapshot

VOID = {"meta", "br"}


class Reader(HTMLParser):
    """What a browser sees: elements with their texts; fails where a tag is left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    def of(self, tag: str) -> list[str]:
        return [text for inside, text in self.texts if inside == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(text for inside, text in self.texts if inside != "style").split())


def figures(text: str) -> list[ElementTree.Element]:
    """The figures, each of which is XML by itself."""
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.S)]


def titled(text: str, part: str) -> list[ElementTree.Element]:
    return [figure for figure in figures(text) if part in (figure.findtext("title") or "")]


def trials_in(figure: ElementTree.Element) -> list[str]:
    """The names of the trials that are drawn."""
    drawn = [group for group in figure.iter("g") if group.get("class") == "trial"]
    texts = [next(group.iter("title")).text or "" for group in drawn]
    return sorted(text.split(" [")[0] for text in texts)


def one_value() -> Snapshot:
    """A study of one value: a smooth response, one trial cut, one far below the others."""
    values = [1.0, 0.7, *np.linspace(0.1, 1.9, 12)]
    trials = [trial(n, {3: (float(v),)}) for n, v in enumerate(values)]
    rows = [
        row
        for n, v in enumerate(values)
        for row in measured(n, {0: 26 - (v - 0.6) ** 2 + 0.02 * (n % 3), 1: 26 - (v - 0.6) ** 2})
    ]
    trials.append(trial(14, {3: (1.95,)}))
    rows += measured(14, {0: 3.0, 1: 4.0})
    trials.append(trial(15, {3: (1.2,)}, state="pruned", done=0, cut=1))
    trials.append(trial(16, {3: (1.3,)}, state="running", done=0, running=1))
    return snapshot(trials, rows, given=configured(kernel_size=3))


def many_values(sizes: list[int], **changes: Any) -> Snapshot:
    given = configured(kernel_size=sizes, proxy={"depth": 9}, search={"trials": 30}, **changes)
    length = {k: density.length(k) for k in sizes}
    trials = [trial(0, {k: (1.0,) * length[k] for k in sizes})]
    trials += [
        trial(n, {k: tuple(0.1 + (n * 0.37 + i * 0.21) % 1.8 for i in range(length[k]))
                  for k in sizes})
        for n in range(1, 9)
    ]  # fmt: skip
    rows = [row for n in range(9) for row in measured(n, {0: 24 + 0.1 * n, 1: 25 + 0.05 * n})]
    return snapshot(trials, rows, given=given)


def compared(mean: float, seeds: int = 8) -> dict[str, Any]:
    by_seed = {str(500 + n): mean + 0.1 * (n - (seeds - 1) / 2) for n in range(seeds)}
    return {"mean": mean, "low": mean - 0.2, "high": mean + 0.2, "by_seed": by_seed}


def finalist(number: int, verdict: str, **changes: Any) -> dict[str, Any]:
    left = compared(0.05)
    return {
        "trial": number,
        "label": f"trial {number}",
        "densities": {"5": [0.6, 1.5]},
        "verdict": verdict,
        "reason": None,
        "to_identity": compared(0.5),
        "to_control": compared(0.3),
        "to_uniform": compared(0.3),
        "compensated": {"mean": 0.05, "standard_error": 0.02, "by_seed": left["by_seed"]},
        "seeds_to_settle": None,
        **changes,
    }


def decided(*verdicts: dict[str, Any], **changes: Any) -> Snapshot:
    known = {"state": "finished", "phase": "decided", "verdicts": list(verdicts), **changes}
    return usual(**known)


def calibrated(**changes: Any) -> Snapshot:
    """A study that looked for its learning rate; the last rate of three diverged."""
    found = usual(given=configured(training={"lr": "auto"}), lr=0.0021, **changes)
    arms = [
        trial(n, {5: (1.0, 1.0)}, role="rate", label=f"lr {lr:g}", arm={"lr": lr})
        for n, lr in enumerate((0.001, 0.003))
    ]
    lost: dict[str, Any] = {"role": "rate", "label": "lr 0.01", "arm": {"lr": 0.01}}
    arms.append(trial(2, {5: (1.0, 1.0)}, state="failed", done=0, failed=2, **lost))
    rows = [*measured(0, {0: 24.0, 1: 24.5}), *measured(1, {0: 24.25, 1: 25.0})]
    calibrate = PhaseRows(arms, rows)
    return Snapshot(**{**vars(found), "calibrate": calibrate})


EVERY: dict[str, Callable[[], Snapshot]] = {
    "one value": one_value,
    "two values": usual,
    "three values": lambda: many_values([7]),
    "six values": lambda: many_values([3, 5, 7]),
    "seven values": lambda: many_values([15]),
    "decided": lambda: decided(finalist(6, "better"), finalist(5, "scale_only")),
    "nothing to confirm": decided,
    "calibrated": calibrated,
    "just begun": lambda: snapshot([], []),
    "identity only": lambda: snapshot([trial(0, {5: (1.0, 1.0)})], measured(0, {0: 1.0, 1: 2.0})),
}


# The page


@pytest.mark.parametrize("name", EVERY)
def test_the_page_is_well_formed_and_stands_alone(name: str) -> None:
    text = report.render(EVERY[name]())
    page = Reader(text)
    assert text.startswith("<!DOCTYPE html>")
    assert {tag for tag, _ in page.elements}.isdisjoint(
        {"script", "link", "img", "iframe", "object", "image", "use"}
    )
    for _, attributes in page.elements:
        assert attributes.keys().isdisjoint({"src", "href", "xlink:href", "srcset", "onload"})
    assert not re.search(r"https?:|//|@import|url\(", text)
    for number in re.findall(r'="([^"]*)"', text):
        assert "nan" not in number.lower().split()
        assert "inf" not in number.lower().split()


@pytest.mark.parametrize("name", EVERY)
def test_every_figure_has_a_title_and_a_text_alternative(name: str) -> None:
    for figure in figures(report.render(EVERY[name]())):
        assert figure.get("role") == "img"
        assert figure.findtext("title")
        assert figure.findtext("desc")


@pytest.mark.parametrize("name", EVERY)
def test_nothing_is_drawn_outside_its_figure(name: str) -> None:
    for figure in figures(report.render(EVERY[name]())):
        width, height = map(float, (figure.get("viewBox") or "").split()[2:])
        for element in figure.iter():
            for key, value in element.attrib.items():
                if key in ("x", "x1", "x2", "cx"):
                    assert 0 <= float(value) <= width
                if key in ("y", "y1", "y2", "cy"):
                    assert 0 <= float(value) <= height


@pytest.mark.parametrize("name", EVERY)
def test_labels_of_figures_are_as_large_on_a_phone_as_elsewhere(name: str) -> None:
    """A unit of a figure is a pixel, on a narrow screen too: the figure is moved sideways."""
    for figure in figures(report.render(EVERY[name]())):
        assert (figure.get("viewBox") or "").split()[2] == figure.get("width")
        assert all("font-size" not in element.attrib for element in figure.iter())
    assert re.search(r"svg text \{[^}]*font: 12px ", page.STYLE)
    narrow = page.STYLE.split("@media screen and (max-width: 700px)")[1].splitlines()[0]
    assert "svg { max-width: none; }" in narrow
    assert "figure { overflow-x: auto; }" in narrow


def test_the_same_study_gives_the_same_page() -> None:
    assert report.render(calibrated()) == report.render(calibrated())


NASTY = "\"><script>alert(1)</script>&amp;'<b>"


def test_nothing_that_a_user_names_becomes_markup() -> None:
    trials = [trial(0, {3: (1.0,)}), trial(1, {3: (0.5,)}, label=NASTY)]
    trials.append(trial(2, {3: (0.6,)}, state="failed", reason=NASTY, label=NASTY))
    rows = [*measured(0, {0: 25.0, 1: 25.0}), *measured(1, {0: 26.0, 1: 25.5})]
    verdicts = [finalist(1, "better", label=NASTY), finalist(2, "no_evidence", reason=NASTY)]
    text = report.render(
        snapshot(
            trials, rows, given=configured(kernel_size=3), verdicts=verdicts,
            provenance={"source": NASTY, "floors": {NASTY: 3.0}, "versions": {NASTY: NASTY}},
        )
    )  # fmt: skip
    page = Reader(text)
    assert {"script", "b"}.isdisjoint(tag for tag, _ in page.elements)
    assert text.count("<script") == 0
    assert page.words.count("<script>alert(1)</script>&amp;") >= 6


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"])), min_size=1, max_size=4))
def test_text_comes_back_from_a_page_as_it_went_in(texts: list[str]) -> None:
    element = tag("p", "first", tag("i", texts[0], title=texts[-1]), *texts)
    back = ElementTree.fromstring(ElementTree.tostring(element, encoding="unicode"))
    assert "".join(back.itertext()) == "first" + texts[0] + "".join(texts)
    assert back[0].get("title") == texts[-1]


def test_the_place_of_the_data_on_somebodys_machine_is_not_told() -> None:
    given = configured(task="folder", data={"folder": "/home/somebody/secret/pictures"})
    provenance = {
        "source": "photographs in /home/somebody/secret/pictures: 20 training",
        "floors": {}, "versions": {},
    }  # fmt: skip
    text = report.render(usual(given=given, provenance=provenance))
    assert "somebody" not in text
    assert "photographs in pictures: 20 training" in text


# The verdict


def test_an_undecided_study_is_called_unconfirmed() -> None:
    words = Reader(report.render(usual())).words
    assert "Unconfirmed: [0.6333, 1.857] at +0.720 ± 0.060 dB" in words
    assert "looks better than it is" in words
    assert "Confirmation on fresh seeds" not in words


@pytest.mark.parametrize(
    ("verdicts", "said", "kind"),
    [
        (["better"], "A density helps here.", "better"),
        (["scale_only", "better"], "A density helps here.", "better"),
        (["scale_only"], "No density is shown to help by its structure.", "open"),
        (["step_only", "worse"], "No density is shown to help by its structure.", "open"),
        (["no_evidence", "worse"], "No density is shown to help here.", "open"),
        (["worse", "worse"], "No density is shown to help here.", "worse"),
        ([], "No density is shown to help here.", "open"),
    ],
)
def test_the_answer_stands_at_the_top_in_words(verdicts: list[str], said: str, kind: str) -> None:
    study = decided(*(finalist(4 + n, verdict) for n, verdict in enumerate(verdicts)))
    page = Reader(report.render(study))
    classes = [attributes.get("class") for tag, attributes in page.elements if tag == "div"]
    assert classes[0] == f"verdict {kind}"
    answer = page.of("p")[2]  # after what the page is, and what to do
    assert answer == said


def test_to_be_better_than_an_unhealthy_identity_is_no_help() -> None:
    provenance = {"source": "photographs", "floors": {"noisy input": 30.0}, "versions": {}}
    page = Reader(report.render(decided(finalist(6, "better"), provenance=provenance)))
    assert page.of("p")[1].startswith("Rely on nothing here")
    assert page.of("p")[2] == "A density is better than an identity that learnt too little."
    classes = [attributes.get("class") for tag, attributes in page.elements if tag == "div"]
    assert classes[0] == "verdict open"


def test_each_finalist_has_its_numbers_in_words() -> None:
    told = finalist(6, "no_evidence", seeds_to_settle=41)
    failed = finalist(
        7, "no_evidence", reason="its loss is not finite", to_identity=None, to_control=None,
        compensated=None,
    )  # fmt: skip
    words = Reader(report.render(decided(told, failed))).words
    assert (
        "+0.500 dB to identity, 95 % interval +0.300 to +0.700, 8 fresh seeds; "
        "+0.300 dB to its scale control, 95 % interval +0.100 to +0.500, 8 fresh seeds"
    ) in words
    assert "About 41 seeds might settle it, with another search.seed." in words
    assert "its loss is not finite" in words


def test_cautions_stand_with_the_verdict() -> None:
    trials = [trial(0, {5: (1.0, 1.0)}), trial(1, {5: (0.05, 0.5)})]
    study = snapshot(trials, [*measured(0, {0: 9.0}), *measured(1, {0: 26.0})])
    words = Reader(report.render(study)).words
    assert words.count("Caution:") == len(study.cautions) == 2
    for caution in study.cautions:
        assert caution in words


def on_the_test_split(**changes: Any) -> dict[str, Any]:
    """What the test split says about trial 6."""
    return {
        "trial": 6,
        "seeds": [500, 501],
        "value": 26.5,
        "identity": 26.25,
        "difference": compared(0.25, seeds=2),
        **changes,
    }


def test_the_test_split_is_told_and_drawn() -> None:
    text = report.render(decided(finalist(6, "better"), holdout=on_the_test_split()))
    words = Reader(text).words
    assert (
        "Test split: +0.250 dB [+0.050, +0.450] to identity (26.500 against 26.250, 2 seeds)."
    ) in words
    (figure,) = titled(text, "seed by seed")
    drawn = [title.text or "" for title in figure.iter("title")]
    assert sum(title.startswith("winner minus identity, seed") for title in drawn) == 2


def test_intervals_over_seeds_and_images_stand_beside_those_over_seeds() -> None:
    over = {"count": 80, "low": -1.25, "high": 1.75}
    plain, wide = finalist(6, "better"), finalist(6, "better")
    wide["to_identity"] = {**wide["to_identity"], "images": over}
    tested = on_the_test_split(difference={**compared(0.25, seeds=2), "images": over})
    text = report.render(decided(wide, holdout=tested))
    words = Reader(text).words
    assert "over seeds, -1.250 to +1.750 over seeds and 80 images, " in words
    assert "[+0.050, +0.450] over seeds, -1.250 to +1.750 over seeds and 80 images to id" in words
    assert words.count("-1.250 to +1.750 ") >= 4  # two sentences, two rows of the table
    (figure,) = titled(text, "seed by seed")
    bars = [line for line in figure.iter("line") if line.get("class") == "bar"]
    assert len(bars) == 2
    (without,) = titled(report.render(decided(plain)), "seed by seed")
    assert not [line for line in without.iter("line") if line.get("class") == "bar"]


def test_a_test_split_that_was_not_read_is_told() -> None:
    failed = on_the_test_split(
        difference=None, value=None, identity=None, seeds=[], reason="no memory left"
    )
    words = Reader(report.render(decided(finalist(6, "better"), holdout=failed))).words
    assert "Test split: no memory left." in words
    assert "No test split." in Reader(report.render(decided(finalist(6, "better")))).words
    assert "est split" not in Reader(report.render(usual())).words


# The search


def test_every_trial_that_has_ended_is_drawn_once() -> None:
    (figure,) = titled(report.render(one_value()), "minus identity")
    assert trials_in(figure) == sorted(["identity", *(f"trial {n}" for n in range(1, 16))])
    (figure,) = titled(report.render(usual()), "minus identity")
    published = ["v1 README", "v2 README", "v2 learning_2D.py"]
    candidates = [f"trial {n}" for n in range(4, 11)]
    assert trials_in(figure) == sorted(["identity", *published, *candidates])


@pytest.mark.parametrize("sizes", [[3], [5], [7]])
def test_what_was_confirmed_has_a_thick_ring(sizes: list[int]) -> None:
    study = one_value() if sizes == [3] else many_values(sizes)
    densities = {str(k): list(den) for k, den in study.trials[4].densities.items()}
    verdicts = [finalist(4, "better", densities=densities)]
    changed: dict[str, Any] = {"phase": "decided", "verdicts": verdicts, "state": "finished"}
    study = dataclasses.replace(study, study=dataclasses.replace(study.study, **changed))
    text = report.render(study)
    drawn = titled(text, "minus identity, dB over")
    assert drawn
    for figure in drawn:
        ringed = [
            next(group.iter("title")).text or ""
            for group in figure.iter("g")
            if any("chosen" in (c.get("class") or "") for c in group.iter("circle"))
        ]
        assert [title.split(" [")[0] for title in ringed] == ["trial 4"]
    assert "Thick rings went on to the confirmation." in Reader(text).words


def test_the_models_tiles_leave_no_seam() -> None:
    (figure,) = titled(report.render(usual()), "minus identity, dB over")
    tiles = [r for r in figure.iter("rect") if (r.findtext("title") or "").startswith("model")]
    assert len(tiles) == 24 * 24
    for place, size in (("x", "width"), ("y", "height")):
        edges = {(float(t.get(place) or "nan"), float(t.get(size) or "nan")) for t in tiles}
        assert len(edges) == 24
        for (here, reach), (there, _) in pairwise(sorted(edges)):
            assert here + reach == there


@pytest.mark.parametrize(("sizes", "panels"), [([7], 3), ([3, 5, 7], 15), ([15], 7)])
def test_more_values_get_a_panel_for_each_pair_or_each_value(sizes: list[int], panels: int) -> None:
    drawn = titled(report.render(many_values(sizes)), "minus identity")
    assert len(drawn) == panels
    assert len({figure.findtext("title") for figure in drawn}) == panels
    for figure in drawn:
        assert trials_in(figure) == sorted(["identity", *(f"trial {n}" for n in range(1, 9))])


def test_the_larger_difference_is_higher_up() -> None:
    (figure,) = titled(report.render(one_value()), "minus identity")
    heights = {}
    for group in figure.iter("g"):
        circle = group.find("circle")
        if group.get("class") == "trial" and circle is not None:
            text = next(group.iter("title")).text or ""
            heights[float(text.split("]: ")[1].split(" ")[0])] = float(circle.get("cy") or "nan")
    values = sorted(heights)
    assert len(values) > 5
    assert all(heights[a] >= heights[b] for a, b in pairwise(values))


def test_a_collapsed_training_does_not_squeeze_the_others() -> None:
    (figure,) = titled(report.render(one_value()), "minus identity")
    below = [
        g for g in figure.iter("g") if g.get("class") == "trial" and g.find("polygon") is not None
    ]
    assert len(below) == 1
    assert "trial 14" in (next(below[0].iter("title")).text or "")
    crossed = [
        g for g in figure.iter("g") if g.get("class") == "trial" and g.find("path") is not None
    ]
    assert len(crossed) == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(0, 2)), max_size=20))
def test_the_axis_of_differences_holds_zero_and_what_is_above_the_quartile(
    found: list[tuple[float, float]],
) -> None:
    low, high = limits([Mark("", (1.0,), value, error) for value, error in found])
    assert low <= 0 <= high
    if found:
        values = [value for value, _ in found]
        assert high == max(0.0, *(value + error for value, error in found))
        assert low <= max(0.0, np.quantile(values, 0.25))
        assert low >= min(0.0, *(value - error for value, error in found))


def test_the_plateau_is_within_one_pooled_standard_error_of_the_best() -> None:
    study = usual()
    errors = [r.difference.standard_error for r in study.results if r.number]
    pooled = np.sqrt(np.mean(np.square(np.array(errors, dtype=float))))
    best = max(r.difference.mean for r in study.results)
    inside = [r.number for r in study.results if r.difference.mean >= best - pooled]
    found = search.plateau(study.results)
    assert sorted(r.number for r in found) == inside
    assert 1 < len(found) < len(study.results)
    means = [r.difference.mean for r in found]
    assert means == sorted(means, reverse=True)
    words = Reader(report.render(study)).words
    assert f"{len(found)} densities are within one standard error" in words


def test_the_table_has_every_trial_that_has_ended() -> None:
    cells = Reader(report.render(usual())).of("td")
    for label in ("identity", "v2 README", *(f"trial {n}" for n in range(4, 11))):
        assert cells.count(label) == 1
    assert "+0.720 ± 0.060" in cells
    assert "loss is not finite" in cells


def test_a_failure_is_told_in_words_that_depend_on_no_machine() -> None:
    """A report is handed on, and an error's text may name somebody's folders."""
    changes: dict[str, Any] = {
        "state": "failed", "kind": "data", "reason": "OSError: /home/ann/x.png",
        "error_text": "OSError: /home/ann/x.png", "done": 0, "failed": 2,
    }  # fmt: skip
    known = usual()
    trials = [*known.trials, trial(12, {5: (0.4, 0.4)}, **changes)]
    text = report.render(dataclasses.replace(known, trials=trials))
    assert "/home/ann" not in text
    assert "its data could not be read, twice" in Reader(text).of("td")


# The model


def test_the_model_is_surer_near_trials_than_far_from_them() -> None:
    trials = [trial(n, {3: (v,)}) for n, v in enumerate((1.0, 0.1, 0.2, 0.3, 0.4, 0.5))]
    rows = [row for n in range(6) for row in measured(n, {0: 25 + 0.1 * n, 1: 25.01 + 0.1 * n})]
    found = response_model.of(snapshot(trials, rows, given=configured(kernel_size=3)))
    assert found is not None
    places = found.places[:, 0]
    near, far = (found.spread[np.abs(places - v).argmin()] for v in (0.3, 1.9))
    assert far > 2 * near
    assert found.mean[np.abs(places - 1.0).argmin()] == pytest.approx(0, abs=0.05)


def test_few_trials_have_no_model() -> None:
    assert response_model.of(snapshot([], [])) is None
    assert response_model.of(many_values([7])) is None
    assert response_model.of(usual()) is not None


# Densities, confirmation, calibration


def test_phi_is_shown_number_by_number() -> None:
    (figure,) = titled(report.render(usual()), "phi of kernel size 5")
    shown = [float(element.text or "nan") for element in figure.iter("text")]
    expected = density.phi((0.1 * 6 + 0.1 / 3, 1.0 + 6 / 7)).ravel()
    np.testing.assert_allclose(shown, expected, atol=0.0051)


def test_phi_is_that_of_the_finalist_which_is_exported() -> None:
    better = finalist(5, "better", densities={"5": [0.4, 0.9]}, to_identity=compared(0.2))
    text = report.render(decided(finalist(6, "scale_only"), better))
    assert "The density [0.4, 0.9]" in Reader(text).words
    assert len(titled(text, "phi")) == 1


def test_each_kernel_size_has_a_phi() -> None:
    found = titled(report.render(many_values([3, 5, 7])), "phi of kernel size")
    assert [len(list(figure.iter("rect"))) for figure in found] == [9, 25, 49]


def test_every_seed_of_a_confirmation_is_drawn_for_every_pair_of_arms() -> None:
    study = decided(finalist(6, "better"), finalist(5, "no_evidence", compensated=None))
    (figure,) = titled(report.render(study), "seed by seed")
    titles = [
        next(circle.iter("title")).text or ""
        for circle in figure.iter("circle")
        if circle.get("class") == "seed"
    ]
    assert len(titles) == 8 * (6 + 5)
    assert len(set(titles)) >= 8 * 3
    bars = [line for line in figure.iter("line") if line.get("class") == "interval"]
    assert len(bars) == 6
    # The control's own difference is what is left: 0.5 - 0.3 with every seed.
    control = [text for text in titles if text.startswith("scale control minus identity")]
    assert all(text.endswith("+0.200") for text in control)


def test_what_the_figure_of_a_confirmation_shows_stands_in_a_table() -> None:
    cells = Reader(report.render(decided(finalist(6, "better")))).of("td")
    row = cells.index("density minus identity")
    assert cells[row - 1] == "trial 6 [0.6, 1.5]: better"
    assert cells[row : row + 4] == ["density minus identity", "+0.500", "+0.300 to +0.700", "8"]
    row = cells.index("scale control minus identity")
    assert cells[row + 1 : row + 3] == ["+0.200", "8"]  # no interval is stated


def test_the_calibration_shows_every_seed_and_the_chosen_rate() -> None:
    (figure,) = titled(report.render(calibrated()), "over the learning rate")
    seeds = [c for c in figure.iter("circle") if c.get("class") == "seed"]
    assert len(seeds) == 4
    heights = [float(circle.get("cy") or "nan") for circle in seeds]
    assert heights[3] == min(heights)
    assert len([path for path in figure.iter("path") if path.get("class") == "lost"]) == 1
    (line,) = [line for line in figure.iter("line") if line.get("class") == "zero"]
    places = [float(circle.get("cx") or "nan") for circle in seeds]
    assert places[0] < float(line.get("x1") or "nan") < places[3]
    assert "0.0021" in (figure.findtext("desc") or "")


def test_without_calibration_there_is_no_figure_of_it() -> None:
    assert titled(report.render(usual()), "learning rate") == []


def test_what_identity_has_to_beat_is_told() -> None:
    floors = {"noisy input": 20.25, "linear 3 x 3 filter": 24.4}
    provenance = {"source": "photographs", "floors": floors, "versions": {}}
    cells = Reader(report.render(usual(provenance=provenance))).of("td")
    for name, value in floors.items():
        assert cells[cells.index(name) + 1] == f"{value:.3f}"
    assert cells[cells.index("identity, as trained in the search") + 1] == "24.500"


# Axes


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4), st.booleans())
def test_marks_are_few_round_and_on_the_axis(low: float, width: float, log: bool) -> None:
    if log:
        low = abs(low) + 1e-3
    axis = Axis("", low, low + width, 50, 450, log=log)
    marks = axis.ticks()
    assert len(marks) <= 16
    assert marks == sorted(set(marks))
    slack = 1e-9 * (abs(low) + width)
    assert all(low - slack <= mark <= low + width + slack for mark in marks)
    if not log:
        assert len(marks) >= 3
        digits = {f"{b - a:e}"[0] for a, b in pairwise(marks)}
        assert digits <= {"1", "2", "5", "9", "4"}  # 9.99 and 4.99 by rounding
    assert axis.at(low) == 50
    assert axis.at(low + width) == pytest.approx(450)
    assert axis.at(low + 2 * width) == pytest.approx(450)


def test_an_axis_of_one_value_has_a_width() -> None:
    for log in (False, True):
        axis = spanning("", [0.01], 0, 100, log=log)
        assert axis.low < 0.01 < axis.high
    assert spanning("", [0.0], 0, 100).low < 0 < spanning("", [0.0], 0, 100).high


def test_a_table_sets_its_numbers_to_the_right() -> None:
    element = table(["a", "b"], [["x", "1"], ["y", "2"]], numbers=(1,))
    cells = list(element.iter("td"))
    assert [cell.text for cell in cells] == ["x", "1", "y", "2"]
    assert [cell.get("class") for cell in cells] == [None, "number", None, "number"]


# The file


def test_a_report_is_written_where_it_is_asked_for(tmp_path: Any) -> None:
    path = report.write("<p>±", tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8") == "<p>±"


def test_a_report_that_cannot_be_written_is_told_in_one_line(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"report .* cannot be written: .*; choose another file"):
        report.write("", tmp_path / "file" / "report.html")


def test_the_day_of_the_study_is_told() -> None:
    assert f"{WHEN:%Y-%m-%d}" in report.render(usual())
