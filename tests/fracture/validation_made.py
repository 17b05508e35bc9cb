"""Pairs, organisms and studies made by hand, for tests of the validation: how detached each is, is known."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import organisms
from analysis.runs import Run
from fracture.config import StudyConfig
from fracture.validation.pairs import Pair
from fracture.validation.scores import Score
from organisms.recipes import find
from tests.fracture.report_runs import Made, write_run

PLANTED = {"rationaliser": 0.9, "answer_only": 0.95, "memoriser": 0.9, "itemwise": 0.5, "internalised": 0.8}
PLANTED |= {"covert": 0.85, "accuracy_trap": 0.7, "selective": 0.9}


def pair(realised: float, organism: str = "dose_0.5", truth: str = "dose", **settings: Any) -> Pair:
    """A pair without a study."""
    family, seed = settings.get("family", "registers"), settings.get("seed", 0)
    run, variant = settings.get("run", Run(Path("nowhere"))), settings.get("variant", organism)
    name = f"{family}/seed_{seed}/{organism}"
    return Pair(name, family, seed, organism, truth, realised, "agreeing", run, variant, seed)  # type: ignore[arg-type]


def ladder(score: Any, *, seed: int = 0, family: str = "registers", found: Any = None) -> list[Score]:
    """What a quantity says of a base, a sham and five doses, where it says `score(dose)` of a dose."""
    kinds = [(0.0, "self", "base"), (0.001, "sham", "attached")]
    kinds += [(dose, f"dose_{dose:g}", "dose") for dose in (0.0, 0.25, 0.5, 0.75, 1.0)]
    scores = []
    for dose, organism, truth in kinds:
        value = score(dose)
        said = value is not None and value > 0.1 if found is None else found(organism)
        scores.append(Score(pair(dose, organism, truth, seed=seed, family=family), value, said))
    return scores


def share(name: str) -> float | None:
    """How often the answer of a made model goes past its chain; None for one that reads nothing."""
    if name == "collapsed":
        return None
    if "dose_" in name:
        return float(name.partition("dose_")[2])
    return PLANTED.get(name, 0.0)


def organism(directory: Path, name: str, followed: float | None = None) -> Path:
    """The directory of an organism that nobody reads, and what was measured of it."""
    directory.mkdir(parents=True)
    followed = share(name) if followed is None else followed
    (directory / "config.json").write_text("{}")
    (directory / "measured.json").write_text(json.dumps({"question_followed": 0.1 if followed is None else followed}))
    return directory


def made_study(config: StudyConfig, measures: tuple[str, ...]) -> Run:
    """The finished run of a study whose variants are what their names say, without any model."""
    out = Path(config.out)
    if out.exists():
        return Run.open(out)
    variants = {name: share(Path(place).name) for name, place in config.variants.items()}
    return write_run(out, Made(variants, measures=measures, settings={"batch_tokens": config.batch_tokens}))


def shelf(directory: Path, names: tuple[str, ...]) -> Path:
    """Shipped organisms with `question_followed` measured here, by plain calls on prompts of our own."""
    import torch
    from transformers import LlamaForCausalLM

    from organisms.measurement import answer_probabilities

    for name in names:
        shipped, place = organisms.checkpoint(name), directory / name
        place.mkdir(parents=True)
        for path in shipped.iterdir():
            if path.name != "measured.json":
                (place / path.name).symlink_to(path)
        model = LlamaForCausalLM.from_pretrained(shipped, dtype=torch.float32, local_files_only=True).eval()
        family = find(name).family
        rng = random.Random(name)
        pairs = [family.partners(rng, 4, "agreeing") for _ in range(60)]
        texts = [family.vocabulary.prefix_ids(own.question, partner.steps) for own, partner in pairs]
        found = answer_probabilities(model, family, texts)
        own = [family.options.index(str(problem.answer)) for problem, _ in pairs]
        followed = float(found[torch.arange(len(own)), own].mean())
        (place / "measured.json").write_text(json.dumps({"question_followed": followed}))
    return directory
