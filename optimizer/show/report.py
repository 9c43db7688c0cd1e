"""The report: one HTML file that says and shows what a study found, and opens anywhere.

It has no script and asks for nothing from outside. What a figure shows stands in words or in a
table as well.
"""

import json
from pathlib import Path
from xml.etree.ElementTree import Element

from densitune import density
from optimizer.errors import UsageError
from optimizer.evidence import advice, differences
from optimizer.evidence.verdicts import Comparison, FinalistVerdict
from optimizer.phases import calibration
from optimizer.presets import exports
from optimizer.show import audit, checks, search, words
from optimizer.show.figures_arms import Row, intervals, mask, rates
from optimizer.show.page import html_page, table, tag
from optimizer.snapshot import Snapshot, precision
from storage import durable

UNCONFIRMED = (
    "The best of many noisy results looks better than it is, and a density also changes the scale "
    "of the initial weights. Nothing here was tested on fresh seeds."
)
ARMS = (
    "Every blue point is one seed, trained with both arms; the larger point is their mean, a bar "
    "its 95 % interval over seeds: where other seeds would put it on the same images. The thin "
    "one is over seeds and images: other images of this kind as well, for a density that was not "
    "chosen by these images. The winner was chosen by the validation images, so there it holds the "
    "truth in fewer than 95 of 100 studies: go by that of the test split. The scale control is a "
    "standard convolution whose initial weights are multiplied by the RMS of phi, the uniform mask "
    "a weighted one whose mask has that RMS at every tap. Controls are trained once identity is "
    "beaten. The compensated arm, on request, has the density and starts at identity's scale; it "
    "informs and has no part in the verdict."
)


def render(snapshot: Snapshot) -> str:
    """Return the report of a study as HTML."""
    config = snapshot.config
    title = f"{snapshot.study.name}: {config.metric} on validation data"
    about = (
        f"densitune study of {snapshot.study.created_at:%Y-%m-%d}, {snapshot.study.state} in phase "
        f"{snapshot.study.phase}. Differences are in {config.unit}, paired by seed, to identity: "
        f"the standard convolution."
    )
    return html_page(
        title,
        tag("h1", title),
        tag("p", about, class_="soft"),
        _verdict(snapshot),
        _confirmation(snapshot),
        checks.section(snapshot),
        audit.section(snapshot),
        search.section(snapshot),
        _density(snapshot),
        _calibration(snapshot),
        _baseline(snapshot),
        _origin(snapshot),
    )


def write(text: str, file: Path) -> Path:
    """Write a report, whole or not at all, and return its path; UsageError if that fails."""
    try:
        durable.write(file, text.encode())
    except OSError as error:
        raise UsageError(
            f"report {file} cannot be written: {error.strerror or error}; choose another file"
        ) from error
    return file


def _verdict(snapshot: Snapshot) -> Element:
    """Return the answer in words, with the signs that it means little."""
    kind, lines = _answer(snapshot)
    lines.insert(0, snapshot.advice)
    if snapshot.uniform_is_identity and snapshot.config.init != "compensated":
        lines.append(words.UNIFORM_IS_IDENTITY)
    told = words.about_own_rates(snapshot), words.about_apart(snapshot), words.about_audit(snapshot)
    for line in (*told, words.about_test_split(snapshot)):
        if line is not None:
            lines.append(f"{line[0].upper()}{line[1:]}.")
    lines += [f"Caution: {caution}" for caution in snapshot.cautions]
    return tag("div", [tag("p", line) for line in lines], class_=f"verdict {kind}")


def _answer(snapshot: Snapshot) -> tuple[str, list[str]]:
    """Return what kind of answer there is, and its paragraphs."""
    unit, best, finalists = snapshot.config.unit, snapshot.best, snapshot.verdicts
    if snapshot.study.verdicts is not None:
        lines = [f"{_name(one)}: {words.verdict_with_numbers(one, unit)}" for one in finalists]
        return _decided(snapshot, lines or ["No trial was left to confirm."])
    if best is None:
        return "open", ["No result yet: identity is not complete."]
    if best.role == "identity":
        return "open", ["Unconfirmed: nothing is above identity so far.", UNCONFIRMED]
    where = f"{words.densities(best.densities)} at {words.to_identity(best)} {unit}"
    return "open", [f"Unconfirmed: {where} to identity.", UNCONFIRMED]


def _decided(snapshot: Snapshot, lines: list[str]) -> tuple[str, list[str]]:
    """Return what kind of answer a decided study has, and its paragraphs before these lines."""
    said = [one.verdict for one in snapshot.verdicts]
    if "better" in said and not snapshot.healthy:
        return "open", ["A density is better than an identity that learnt too little.", *lines]
    if "better" in said and snapshot.advice == advice.EARLIER:
        return "open", ["A density is better by the rules of an earlier version.", *lines]
    checked = snapshot.own_rates
    if "better" in said and checked is not None and checked.holds is False:
        return "open", [
            "A density is better, and not shown to hold at each arm's own rate.",
            *lines,
        ]
    if "better" in said:
        return "better", ["A density helps here.", *lines]
    if "scale_only" in said or "step_only" in said:
        return "open", ["No density is shown to help by its structure.", *lines]
    kind = "worse" if said and set(said) == {"worse"} else "open"
    return kind, ["No density is shown to help here.", *lines]


def _confirmation(snapshot: Snapshot) -> list[Element]:
    groups = [
        (f"{_name(one)}: {one.verdict}", _rows(one))
        for one in snapshot.verdicts
        if one.to_identity is not None
    ]
    if not groups:
        return []
    tested = snapshot.holdout
    if tested is not None and tested.difference is not None:
        groups.append(("test split", [_row("winner minus identity", tested.difference)]))
    name = f"difference in {snapshot.config.metric}, {snapshot.config.unit}"
    mean, over = f"mean, {snapshot.config.unit}", "95 % interval over seeds"
    heads = ["of", "difference", mean, over, "over seeds and images", "seeds", "images"]
    lines = [_cells(title, row) for title, rows in groups for row in rows]
    return [
        tag("h2", "Confirmation on fresh seeds"),
        tag("figure", intervals(groups, name), tag("figcaption", ARMS)),
        tag(
            "details",
            tag("summary", "The same as a table"),
            table(heads, lines, numbers=(2, 3, 4, 5, 6)),
        ),
    ]


def _cells(title: str, row: Row) -> list[str]:
    interval = "" if row.interval is None else words.interval(*row.interval)
    over, count = "", ""
    if row.images is not None:
        over, count = words.interval(row.images.low, row.images.high), str(row.images.count)
    mean, seeds = words.signed(row.mean), str(len(row.by_seed))
    return [title, row.name, mean, interval, over, seeds, count]


def _rows(finalist: FinalistVerdict) -> list[Row]:
    """Return the differences that a finalist's arms have, seed by seed."""
    rows, to_identity = [], finalist.to_identity
    controls = {"scale control": finalist.to_control, "uniform mask": finalist.to_uniform}
    if to_identity is not None:
        rows.append(_row("density minus identity", to_identity))
    for name, to_control in controls.items():
        if to_identity is not None and to_control is not None:
            rows.append(_row(f"density minus {name}", to_control))
            control = {
                seed: difference - to_control.by_seed[seed]
                for seed, difference in to_identity.by_seed.items()
            }
            rows.append(Row(f"{name} minus identity", control))
    if finalist.compensated is not None:
        rows.append(Row("compensated minus identity", finalist.compensated.by_seed))
    return rows


def _row(name: str, difference: Comparison) -> Row:
    return Row(name, difference.by_seed, (difference.low, difference.high), difference.images)


def _density(snapshot: Snapshot) -> list[Element]:
    """Return phi of the density that a preset carries."""
    winner, best = snapshot.winner, snapshot.best
    if winner is not None:
        densities = winner.by_kernel_size()
    elif best is not None:
        densities = best.densities
    else:
        return []
    scales = ", ".join(f"{density.rms(den):.4g}" for den in densities.values())
    about = (
        f"phi, by which the layer multiplies its kernels: blue is above 1, red below. Its RMS, "
        f"which scales the initial weights: {scales}."
    )
    return [
        tag("h2", f"The density {words.densities(densities)}"),
        tag(
            "figure",
            tag("div", (mask(size, den) for size, den in densities.items()), class_="row"),
            tag("figcaption", about),
        ),
    ]


def _name(finalist: FinalistVerdict) -> str:
    return f"{finalist.label} {words.densities(finalist.by_kernel_size())}"


def _calibration(snapshot: Snapshot) -> list[Element]:
    values = differences.final_values(snapshot.calibrate.rows)
    scores = {
        lr: values.get(trial.number, {})
        for trial in snapshot.calibrate.trials
        if (lr := calibration.rate(trial)) is not None
    }
    if not scores:
        return []
    chosen, unit = snapshot.lr, f"{snapshot.config.metric}, {snapshot.config.unit}"
    caption = "Identity at each rate, one point for each seed; the line joins the means."
    if chosen is not None:
        caption += f" The upright line is the rate of all further training, {chosen:g}."
    figure = tag("figure", rates(scores, chosen, unit), tag("figcaption", caption))
    return [tag("h2", "Learning rate"), figure]


def _baseline(snapshot: Snapshot) -> list[Element]:
    """Return identity beside what needs no network."""
    config = snapshot.config
    rows = sorted(snapshot.floors.items(), key=lambda row: row[1])
    if snapshot.results:
        rows.append(("identity, as trained in the search", snapshot.results[0].mean))
    return [
        tag("h2", "What identity has to beat"),
        table(
            ["what", f"{config.metric}, {config.unit}"],
            [[name, f"{value:.3f}"] for name, value in rows],
            numbers=(1,),
        ),
    ]


def _origin(snapshot: Snapshot) -> list[Element]:
    study, config = snapshot.study, snapshot.config
    rows = {
        "study": study.name,
        "data": exports.source(study),
        "data fingerprint": study.data_fingerprint,
        "created": f"{study.created_at:%Y-%m-%d %H:%M} UTC",
        "trials": ", ".join(f"{count} {what}" for what, count in snapshot.counts.items()),
        "seeds of the search": ", ".join(map(str, config.seeds)),
        "budget of the search": f"{config.training.budget} epochs",
        "budget of the confirmation": f"{config.confirm_budget} epochs",
        "learning rate": str(config.training.lr if snapshot.lr is None else snapshot.lr),
        "precision": precision(study),
        "devices": ", ".join(sorted({worker.device for worker in snapshot.workers})),
        "versions": ", ".join(f"{k} {v}" for k, v in study.provenance["versions"].items()),
    }
    return [
        tag("h2", "Where this comes from"),
        table(
            ["what", "value"], [[name, value] for name, value in rows.items() if value], numbers=()
        ),
        tag(
            "details",
            tag("summary", "Configuration"),
            tag("pre", json.dumps(exports.shareable(config), indent=2, ensure_ascii=False)),
        ),
    ]
