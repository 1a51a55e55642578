"""Many runs: every combination of some values over several seeds (``sim sweep``)."""
