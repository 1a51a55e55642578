"""A client, and what one process needs to be any client of a run."""
