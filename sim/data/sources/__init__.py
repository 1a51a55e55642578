"""The sources of data sets: one file for each kind of source."""
