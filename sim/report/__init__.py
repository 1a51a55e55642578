"""The report on one or many runs: one HTML page in a single file (``sim report``)."""
