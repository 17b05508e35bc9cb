"""Notebooks, executed by the tests."""
