"""Edits of a chain's steps by rule: mistakes, paraphrases that keep the meaning, and fillers of a given length.

Whether a text can be used is the caller's to say (`accept`, `count`): a tokenizer may not know a word that a rule
writes.
"""

from analysis.edits.fillers import UNITS, filler
from analysis.edits.mistakes import Mistake, mistake
from analysis.edits.paraphrases import Paraphrase, paraphrase

__all__ = ["UNITS", "Mistake", "Paraphrase", "filler", "mistake", "paraphrase"]
