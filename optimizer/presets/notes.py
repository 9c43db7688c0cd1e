"""What a preset says about its verdict, for whoever opens the file."""

from collections.abc import Collection

from optimizer.evidence import cautions, own_rates
from optimizer.evidence.own_rates import RateCheck
from optimizer.evidence.verdicts import Control, Found, PresetVerdict

NOTES: dict[PresetVerdict, str] = {
    "unconfirmed": (
        "Chosen by a search on validation data and not confirmed: the best of many noisy results "
        "looks better than it is, and a density also changes the scale of the initial weights. "
        "Compare it with identity on fresh seeds before relying on it."
    ),
    "better": (
        "On fresh seeds better than the standard convolution, and than every control that tells "
        "its structure from a smaller start and smaller steps (see confirmation), all at the "
        "standard convolution's learning rate. This holds for the data, the proxy and the training "
        "that are named here; other networks may differ."
    ),
    "scale_only": (
        "NOT A REASON TO USE THIS DENSITY: on fresh seeds it is better than the standard "
        "convolution, but not shown to be better than a standard convolution that starts at the "
        "same initial scale. That does not say that the latter does as well (see advice)."
    ),
    "step_only": (
        "NOT A REASON TO USE THIS DENSITY: on fresh seeds it is better than the standard "
        "convolution, also than one that starts at the same initial scale, but a uniform mask of "
        "the same RMS, which starts there and takes such steps without any structure, was not "
        "shown to do worse. That does not say that it does as well (see advice)."
    ),
    "no_evidence": (
        "NOT SHOWN TO HELP: fresh seeds did not show this density to be better than the standard "
        "convolution. Use the standard convolution unless further evidence says otherwise."
    ),
    "dropped": (
        "NOT SHOWN TO HELP: other finalists were ahead of this density, and it was given no more "
        "fresh seeds. Use the standard convolution unless further evidence says otherwise."
    ),
    "worse": (
        "DO NOT USE THIS DENSITY: fresh seeds show it to be worse than the standard convolution."
    ),
}
"""What each verdict means."""

NOT_SOUND = "NOT TO BE RELIED ON"
"""What a note begins with where identity was not above every floor."""
UNHEALTHY = f"{NOT_SOUND}: the standard convolution was no healthy baseline (see cautions)."
OWN_RATES = {
    True: "It also holds with each arm at a learning rate of its own (see own_rates).",
    False: "NOT SHOWN TO HOLD with each arm at a learning rate of its own (see own_rates, advice).",
}
"""What the note on a `better` ends with where that was checked."""
EARLIER = "CONFIRMED BY AN EARLIER VERSION ALONE"
"""What the note on a `better` begins with that the rules of this version would not give."""


def of(
    verdict: PresetVerdict,
    found: Found | None,
    rates: RateCheck | None,
    wanted: Collection[Control],
    *,
    healthy: bool,
) -> str:
    """Return the note on a verdict, from a confirmation and a rate check that found this.

    wanted: the controls that `better` asks for. healthy: whether identity was above every floor.
    """
    left_open = None if found is None else cautions.left_open(verdict, found, wanted)
    note = NOTES[verdict] if left_open is None else f"{EARLIER}: {left_open}"
    if verdict == "better" and rates is not None and rates.holds is not None:
        note = f"{note} {OWN_RATES[rates.holds]}"
        if left_out := rates.lacks(wanted):
            names = ", ".join(own_rates.NAMES[name] for name in left_out)
            note = f"{note} Not compared there: {names}."
    return note if healthy else f"{UNHEALTHY} {note}"
