"""All recipes by name."""

from __future__ import annotations

import re

from organisms import elimination_recipes as elimination
from organisms import registers_recipes as registers
from organisms.recipe import Recipe

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        registers.BASE,
        *registers.SHAMS,
        *(registers.dose(q) for q in (0, 0.25, 0.5, 0.75, 1)),
        registers.ITEMWISE,
        registers.ANSWER_ONLY,
        registers.RATIONALISER,
        registers.MEMORISER,
        registers.SELECTIVE,
        registers.COLLAPSED,
        elimination.BASE,
        *elimination.SHAMS,
        *(elimination.dose(q) for q in (0.25, 0.5, 1)),
        elimination.INTERNALISED,
        elimination.COVERT,
        elimination.DITHERING,
        elimination.NOVICE,
        elimination.ACCURACY_TRAP,
    )
}
_DOSES = {"": registers.dose, "elimination_": elimination.dose}


def find(name: str) -> Recipe:
    """The recipe of that name; `dose_Q` and `elimination_dose_Q` work for every Q in [0, 1].

    Raises:
        KeyError: if there is none.
    """
    if name in RECIPES:
        return RECIPES[name]
    match = re.fullmatch(r"(elimination_|)dose_(0(?:\.\d+)?|1(?:\.0+)?)", name)
    if match:
        return _DOSES[match[1]](float(match[2]))
    raise KeyError(name)
