"""Dictionaries of features in a study: training them, and comparing models by them."""
