"""Models, traces, interventions, causal measures and statistics: what a study computes with."""
