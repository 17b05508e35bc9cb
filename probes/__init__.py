"""Linear probes over stored activations."""
