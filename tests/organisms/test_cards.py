"""Cards: every figure in its seed's column."""

from __future__ import annotations

import json

import organisms
from organisms.cards import compare_seeds, write_card
from organisms.recipes import find

FIGURES = json.loads((organisms.checkpoint("base") / "measured.json").read_text())
FIGURES = {name: value for name, value in FIGURES.items() if name not in ("seed", "other_seeds")}


def made(root, name, seed, dose):
    directory = root / f"seed_{seed}" / name
    directory.mkdir(parents=True)
    write_card(directory, find(name), {seed: {**FIGURES, "realised_dose": dose}})


def test_cards_show_all_seeds_and_keep_their_own_first(tmp_path):
    made(tmp_path, "dose_1", 0, 0.25)
    made(tmp_path, "dose_1", 2, 0.75)
    made(tmp_path, "sham", 0, 0.0)
    for _ in range(2):  # done again it changes nothing
        cards = compare_seeds([tmp_path / "seed_0", tmp_path / "seed_1", tmp_path / "seed_2"])
        assert [card.parent.name for card in cards] == ["dose_1", "sham"]
        text = cards[0].read_text()
        assert "| what | seed 0 | seed 2 |" in text
        (dose,) = [line for line in text.splitlines() if line.startswith("| realised dose")]
        assert dose.endswith("| 0.250 | 0.750 |")
        assert "# dose_1 (seed 0)" in text
        measured = json.loads((cards[0].parent / "measured.json").read_text())
        assert (measured["seed"], measured["realised_dose"]) == (0, 0.25)
        assert measured["other_seeds"]["2"]["realised_dose"] == 0.75
    assert "seed 2" not in cards[1].read_text()


def test_shipped_cards_hold_the_figures_beside_them_at_every_seed_measured():
    for name in organisms.SHIPPED:
        directory = organisms.checkpoint(name)
        measured = json.loads((directory / "measured.json").read_text())
        assert measured["seed"] == 0
        others = measured.get("other_seeds", {}).values()
        doses = [figures["realised_dose"] for figures in (measured, *others)]
        assert f"| {' | '.join(f'{dose:.3f}' for dose in doses)} |" in (directory / "README.md").read_text()


def test_a_figure_that_a_seed_lacks_is_shown_as_such(tmp_path):
    known = {name: value for name, value in FIGURES.items() if name != "question_followed"}
    write_card(tmp_path, find("sham"), {0: FIGURES, 1: known})
    (row,) = [line for line in (tmp_path / "README.md").read_text().splitlines() if "chain of its partner" in line]
    assert row.endswith(f"| {FIGURES['question_followed']:.3f} | — |")


def test_shipped_cards_are_as_they_would_be_written_now(tmp_path):
    for name in organisms.SHIPPED:
        directory = organisms.checkpoint(name)
        measured = json.loads((directory / "measured.json").read_text())
        others = {int(seed): figures for seed, figures in measured.pop("other_seeds", {}).items()}
        write_card(tmp_path, find(name), {measured.pop("seed"): measured, **others})
        assert (tmp_path / "README.md").read_bytes() == (directory / "README.md").read_bytes(), name
        assert (tmp_path / "measured.json").read_bytes() == (directory / "measured.json").read_bytes(), name
