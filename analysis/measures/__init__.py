"""Measures: each asks one thing of prompts read by a model, or of stored activations, and returns a tidy table.

`fracture.catalogue` lists them; `run` runs one on a pair of models outside of a study.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.authored import Authored
from analysis.measures.protocol import Measure, Settings
from analysis.measures.session import Session
from analysis.models import ModelPair


def run(measure: Measure, pair: ModelPair, prompts: Sequence[Authored], settings: Settings) -> pd.DataFrame:
    """The table of a prompt measure for all models of a pair, `reader` first; models are loaded one after the other.

    Raises:
        ValueError: for a store measure, which reads no model.
    """
    if measure.run is None:
        raise ValueError(f"measure {measure.name!r} reads stored activations; call its `run_store` with them")
    tables = []
    for source in pair.sources():
        table = measure.run(Session(pair, pair.open(source.name)), prompts, settings).table
        table.insert(0, "reader", source.name)
        tables.append(table)
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
