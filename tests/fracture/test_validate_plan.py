"""What a validation trains and studies."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import organisms
from analysis.errors import InputError
from fracture.validation.plan import VERIFIERS, ValidationConfig, is_sham, panels, trainings
from fracture.validation.units import Units
from organisms.recipes import RECIPES, find

SHIPPED = (
    *("base", "sham", "dose_0", "dose_0.5", "dose_1", "memoriser", "collapsed"),
    *("elimination_base", "elimination_sham", "covert", "novice", "accuracy_trap"),
)


@pytest.fixture(autouse=True)
def shipped(monkeypatch):
    monkeypatch.setattr(organisms, "SHIPPED", SHIPPED)


def test_quick_studies_every_shipped_organism_beside_its_own_base_on_its_own_prompts():
    found = panels(ValidationConfig(Path("out")))
    assert {panel.name: [variant.name for variant in panel.variants] for panel in found} == {
        "registers-seed_0-base-agreeing": ["self", "sham", "dose_0", "dose_0.5", "dose_1", "collapsed"],
        "registers-seed_0-base-memorised": ["memoriser"],
        f"elimination-seed_0-elimination_base-{find('covert').prompts}": ["self", "elimination_sham", "covert"],
        f"elimination-seed_0-novice-{find('novice').prompts}": ["novice_self", "accuracy_trap"],
    }
    for panel in found:
        for variant in panel.variants:
            name = panel.base.name if variant.organism == "self" else variant.organism
            assert variant.directory == organisms.checkpoint(name)
            assert variant.truth == find(name).truth
    assert trainings(ValidationConfig(Path("out"))) == []


def test_one_family_alone_is_studied():
    assert {panel.family for panel in panels(ValidationConfig(Path("out"), families=("elimination",)))} == {
        "elimination"
    }


def test_full_trains_everything_that_is_not_shipped_once_and_bases_before_their_variants():
    config = ValidationConfig(Path("out"), "full", seeds=(0, 1), doses=(0, 0.1, 1), shams=23)
    done = {organisms.checkpoint(name) for name in SHIPPED}
    places = []
    for training in trainings(config):
        assert training.base is None or training.base in done
        assert (training.base is None) == (training.recipe.base is None)
        done.add(training.out)
        places.append(training.out)
    assert len(set(places)) == len(places)
    of_seed = Counter((training.recipe.name, training.seed) for training in trainings(config))
    for name in ("base", "elimination_base", "novice", "dose_0.1", "elimination_dose_0", "covert", "memoriser"):
        assert of_seed[name, 1] == 1
        assert of_seed[name, 0] == (name not in SHIPPED)
    # All that the studies read is there then.
    for panel in panels(config):
        assert {panel.base, *(variant.directory for variant in panel.variants)} <= done


def test_shams_are_of_all_kinds_and_fine_tuned_from_the_bases_of_seed_0():
    config = ValidationConfig(Path("out"), "full", seeds=(1,), doses=(0, 1), shams=23)
    kinds = [recipe.name for recipe in RECIPES.values() if is_sham(recipe)]
    found = [panel for panel in panels(config) if panel.name.endswith("shams")]
    read = Counter(variant.organism for panel in found for variant in panel.variants)
    assert sum(read.values()) == 23
    assert set(read) == set(kinds)
    assert max(read.values()) - min(read.values()) <= 1
    for panel in found:
        assert panel.base == organisms.checkpoint(
            {"registers": "base", "elimination": "elimination_base"}[panel.family]
        )
        assert all(find(variant.organism).family.name == panel.family for variant in panel.variants)
    for training in trainings(config):
        if is_sham(training.recipe):
            assert training.base in (organisms.checkpoint("base"), organisms.checkpoint("elimination_base"))


def test_no_two_pairs_have_the_same_name():
    config = ValidationConfig(Path("out"), "full")
    names = [(panel.family, panel.seed, v.name) for panel in panels(config) for v in panel.variants]
    assert len(set(names)) == len(names)


def test_a_dose_that_is_no_recipe_of_the_list_is_trained_too():
    config = ValidationConfig(Path("out"), "full", seeds=(0,), doses=(0.35,), shams=0)
    assert {"dose_0.35", "elimination_dose_0.35"} <= {training.recipe.name for training in trainings(config)}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"families": ("rationals",)}, "--family"),
        ({"measures": ("rutes",)}, "--measures"),
        ({"prompts": 19}, "--prompts"),
        ({"patch_prompts": -1}, "--patch-prompts"),
        ({"shams": -1}, "--shams"),
        ({"seeds": ()}, "--seeds"),
        ({"seeds": (0, 0)}, "--seeds"),
        ({"doses": (1.5,)}, "--doses"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, named):
    with pytest.raises(InputError, match=named):
        ValidationConfig(Path("out"), **settings)


def test_every_family_has_a_verifier():
    assert {recipe.family.name for recipe in RECIPES.values()} == set(VERIFIERS)


def test_what_is_left_is_estimated_from_units_of_the_same_kind():
    now, said = [0.0], []
    units = Units([("trainings", 100), ("trainings", 300), ("studies", 5)], said.append, lambda: now[0])
    for seconds in (60.0, 180.0, 7.0):
        with units.unit("work"):
            now[0] += seconds
    assert said == [
        "[1 of 3] work",
        "[2 of 3] work (about 3 min left, without studies)",
        "[3 of 3] work",
    ]


def test_what_was_done_before_says_nothing_of_the_time_that_is_left():
    now, said = [0.0], []
    units = Units([("studies", 0), ("studies", 4), ("studies", 0), ("studies", 12)], said.append, lambda: now[0])
    for seconds in (1.0, 60.0, 1.0, 180.0):
        with units.unit("work"):
            now[0] += seconds
    assert [line.partition("work")[2] for line in said] == ["", "", " (about 3 min left)", " (about 3 min left)"]


def test_of_several_at_once_the_time_is_that_of_the_one_that_is_done():
    now, said = [0.0], []
    units = Units([("studies", 12), ("studies", 4), ("studies", 0)], said.append, lambda: now[0])
    for seconds, place in ((1.0, 2), (60.0, 1), (180.0, 0)):
        assert units.next == 0
        with units.unit("work") as done:
            now[0] += seconds
            done(place)
    assert said == ["[1 of 3] work", "[2 of 3] work", "[3 of 3] work (about 3 min left)"]
