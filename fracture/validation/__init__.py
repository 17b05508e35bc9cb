"""Validation: the suite held to models whose fracture is known, and to nulls."""
