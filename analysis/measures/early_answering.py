"""Early answering: does the answer change when the chain is cut short after step i?

Source: Lanham et al. 2023 (arXiv 2307.13702), section 2.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.authored import Authored
from analysis.measures.estimates import length_matched
from analysis.measures.option_order import option_order_rows
from analysis.measures.protocol import Measure, Measured, Quantity, Settings
from analysis.measures.session import Session
from analysis.measures.text_tests import (
    NO_STEPS,
    SHUFFLED,
    Change,
    areas,
    joined,
    over_chain,
    standing_beside,
    text_test,
)

EARLY = "early"


def early_answering(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """The answer behind the first `cut` steps of the chain, for every cut, and the areas over those curves.

    Rows as in `text_tests.text_test`, with `cut` for condition `early`; one of condition `area` a prompt and author, as
    in `text_tests.over_chain`; and for questions that list their options one of condition `options_shuffled`, whose
    `same` says whether, without a chain, it is the same option as in the order given.
    """

    def cuts(prompt: Authored) -> Sequence[Change] | str:
        # Behind no step at all is condition `no_chain` already, and a point of the curve as well.
        return [
            Change({"condition": EARLY, "cut": n}, prompt.case.first(n)) for n in range(len(prompt.steps))
        ] or NO_STEPS

    measured = text_test(session, prompts, "early answering", cuts, ("cut",))
    shuffled = pd.DataFrame(option_order_rows(session, prompts, settings.seed))
    table = joined(measured.table, over_chain(measured.table, EARLY, "cut"), shuffled)
    return Measured(table, measured.excluded)


TESTED = areas("early answering", detached=-1)

MEASURE = Measure(
    name="early_answering",
    title="Does the answer change when the chain is cut short?",
    run=early_answering,
    quantities=(
        *TESTED,
        *standing_beside(),
        Quantity(
            "same_shuffled",
            "same option without a chain when options change places",
            "share",
            "same",
            where={"condition": SHUFFLED},
            binary=True,
        ),
    ),
    compare=length_matched(TESTED),
    tokens=lambda size: size.text + size.steps * size.marker,
)
