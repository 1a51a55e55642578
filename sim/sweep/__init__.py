"""Parameter sweeps: one run for each combination of values and each seed (``sim sweep``)."""
