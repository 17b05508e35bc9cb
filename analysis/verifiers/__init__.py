"""Step verifiers: whether what a step of a chain claims is true, decided by rule and not by a judge.

A verifier returns one entry for each claim that it finds in a step, so that steps with nothing to check can be counted
apart and are never taken for true ones.
"""

from analysis.verifiers.equations import Arithmetic, find_claims
from analysis.verifiers.facts import Fact, FactTable
from analysis.verifiers.specs import FORMS, StepVerifier, load_verifier

__all__ = ["FORMS", "Arithmetic", "Fact", "FactTable", "StepVerifier", "find_claims", "load_verifier"]
