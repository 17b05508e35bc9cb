from __future__ import annotations

import pytest
import torch

from analysis.measures import head_map, interventions, patch_map, repair_runs, session


@pytest.fixture(autouse=True)
def _threads() -> None:
    """In place of the two that other tests have: forward passes this short only wait for a second thread."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def any_mass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models spread over more than the options; prompts are measured all the same."""
    for module in (session, patch_map, interventions, head_map, repair_runs):
        monkeypatch.setattr(module, "MIN_OPTION_MASS", 0.0)
