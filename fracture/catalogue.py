"""The catalogue: where every measure is, imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.measures.protocol import Measure

HEADLINE = "routes"
"""The measure on which the verdict rests."""
OWN_HEADLINE = "own_routes"
"""The same on each model's own chains: it can contradict the headline."""
ALWAYS = (HEADLINE, OWN_HEADLINE, "accuracy_and_calibration")
"""Those that every study has."""
TRAJECTORY_MEASURES = (*ALWAYS, "information_gain")
"""Those that every trajectory has."""

MEASURES: dict[str, str] = {
    HEADLINE: "analysis.measures.routes",
    OWN_HEADLINE: "analysis.measures.own_routes",
    "accuracy_and_calibration": "analysis.measures.accuracy_and_calibration",
    "knowledge_index": "analysis.measures.knowledge_index",
    "information_gain": "analysis.measures.information_gain",
    "early_answering": "analysis.measures.early_answering",
    "mistakes": "analysis.measures.mistakes",
    "filler": "analysis.measures.filler",
    "paraphrase": "analysis.measures.paraphrase",
    "foreign_chain": "analysis.measures.foreign_chain",
    "chain_effect": "analysis.measures.chain_effect",
    "true_thinking": "analysis.measures.true_thinking",
    "logit_decay": "analysis.measures.logit_decay",
    "patch_map": "analysis.measures.patch_map",
    "interventions": "analysis.measures.interventions",
    "head_map": "analysis.measures.head_map",
    "attention_knockout": "analysis.measures.knockout",
    "masked_flow": "analysis.measures.masked_flow",
    "repair": "analysis.measures.repair",
    "token_kl": "analysis.measures.token_kl",
    "abstention": "analysis.measures.abstention",
    "format_adherence": "analysis.measures.format_adherence",
    "rule_shift": "analysis.measures.rule_shift",
    "chain_length": "analysis.measures.chain_length",
    "thought_switches": "analysis.measures.thought_switches",
    "partial_input": "analysis.measures.partial_input",
    "readout": "probes.measures.readout",
    "probes": "probes.measures.grid",
    "transfer": "probes.measures.transfer",
    "drift": "analysis.measures.drift",
}
"""Name → module, whose `MEASURE` is the entry."""

STORE_MEASURES = ("readout", "probes", "transfer", "drift")
"""Those that read stored activations, and not a model."""
TWIN_MEASURES = ("probes",)
"""Of these, those that also read a twin of the base with random weights."""

AS_WRITTEN = ("abstention", "format_adherence")
"""Those that look at all that a reader wrote: unanswerable prompts, cut texts and empty chains, too."""
OWN_CHAINS = (OWN_HEADLINE, "chain_length", "thought_switches")
"""Those that look at no chain but the reader's own."""

NAMES = tuple(MEASURES)


def measure(name: str) -> Measure:
    """The measure of that name.

    Raises:
        KeyError: if there is none.
    """
    entry: Measure = importlib.import_module(MEASURES[name]).MEASURE
    return entry
