"""Settings: presets, one validation for file and flags, and a digest of what decides results."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from analysis.errors import InputError
from fracture.catalogue import ALWAYS, NAMES, STORE_MEASURES, measure
from fracture.config import PRESETS, StudyConfig, read_settings
from fracture.run_directory import _yaml

GIVEN = {"base": "b", "variants": {"v": "w"}, "prompts": "p", "out": "o"}


def test_a_preset_gives_way_to_what_is_said():
    quick = StudyConfig.from_mapping({**GIVEN, "preset": "quick"})
    assert (quick.max_prompts, quick.patch_prompts) == (100, 32)
    assert set(quick.measures) == {*ALWAYS, *PRESETS["quick"]["measures"]}
    assert StudyConfig.from_mapping({**GIVEN, "preset": "quick", "max_prompts": 0}).max_prompts == 0
    paper = StudyConfig.from_mapping({**GIVEN, "preset": "paper"})
    assert paper.measures == NAMES
    assert (paper.patch_prompts, paper.continue_mistakes) == (0, True)


def test_the_headline_is_always_measured_and_order_is_the_catalogues():
    chosen = StudyConfig.from_mapping({**GIVEN, "measures": ["drift", "filler"]})
    assert chosen.measures == (*ALWAYS, "filler", "drift")
    assert chosen.keeps_activations
    assert not StudyConfig.from_mapping({**GIVEN, "measures": ["filler"]}).keeps_activations


def test_settings_that_are_none_are_not_given():
    flags = dict.fromkeys(("preset", "seed", "measures", "margin", "continue_mistakes"))
    assert StudyConfig.from_mapping({**GIVEN, **flags}) == StudyConfig(**GIVEN)


def test_the_digest_is_of_what_decides_results():
    one = StudyConfig(**GIVEN)
    assert replace(one, out="elsewhere").digest() == one.digest()
    # A preset is only a name for settings: said one by one they are the same study.
    spelled = StudyConfig(**GIVEN, preset="paper", measures=NAMES, patch_prompts=48, continue_mistakes=False)
    assert spelled.digest() == one.digest()
    for changes in (
        {"seed": 1},
        {"margin": 0.2},
        {"prompts": "q"},
        {"measures": ("filler",)},
        {"variants": {"v": "x"}},
    ):
        assert replace(one, **changes).digest() != one.digest()


def test_a_run_repeats_its_settings_in_a_file_that_makes_the_same_study(tmp_path):
    config = StudyConfig(**GIVEN, preset="quick", seed=3, sites=("resid_post", "z"), format="plain")
    (tmp_path / "study.yaml").write_bytes(_yaml(config))
    assert yaml.safe_load((tmp_path / "study.yaml").read_text())["digest"] == config.digest()
    assert StudyConfig.from_mapping(read_settings(tmp_path / "study.yaml")) == config


@pytest.mark.parametrize("name", NAMES)
def test_the_catalogue_names_what_is_there(name):
    entry = measure(name)
    assert entry.name == name
    assert (entry.run is None) == (name in STORE_MEASURES) == (entry.run_store is not None)
    names = [quantity.name for quantity in entry.quantities]
    assert len(set(names)) == len(names)


def test_a_study_cannot_be_told_to_run_a_file(tmp_path):
    """YAML tags that construct objects are refused."""
    path = tmp_path / "study.yaml"
    path.write_text("base: !!python/object/apply:os.system ['touch /tmp/owned']\n")
    with pytest.raises(InputError, match="not valid YAML"):
        read_settings(path)
