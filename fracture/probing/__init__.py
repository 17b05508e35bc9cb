"""Probes in a study or on a store: training, scores of representation, and tests of causal use."""
