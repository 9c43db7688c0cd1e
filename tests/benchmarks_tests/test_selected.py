"""The simulation of what selection does to intervals: none without it, and much with it."""

import numpy as np
import pytest
import selected
from selected import NAMES, Choice, apart_of, of_a_choice

STUDIES = 300


def covered(choice: Choice) -> list[float]:
    rng = np.random.default_rng(3)
    found = [of_a_choice(rng, choice) for _ in range(STUDIES)]
    return [sum(held) / STUDIES for held in zip(*found, strict=True)]


def test_images_by_which_a_density_was_chosen_flatter_it_and_others_do_not() -> None:
    fixed, chosen = covered(Choice(1)), covered(Choice(28))
    assert min(fixed) >= 0.91
    assert chosen[0] <= 0.85
    assert chosen[1] >= 0.91


def test_a_winner_of_many_looks_inherits_them_when_it_is_taken_apart() -> None:
    found = apart_of(np.random.default_rng(1), 0.5, STUDIES)
    assert tuple(found) == NAMES
    [winners] = {of for _, _, of in found.values()}
    assert STUDIES / 3 < winners < STUDIES
    held, _, _ = found["init_only"]
    assert held / winners >= 0.9
    _, above, _ = found["steps"]
    assert above / winners > 0.03


def test_its_tables_are_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["selected.py", "--studies", "5"])
    selected.main()
    assert capsys.readouterr().out.count("\n| ") == len(selected.CHOICES) + 1 + 1 + 15 + 1
