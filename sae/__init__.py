"""Sparse autoencoders and crosscoders over stored activations."""
