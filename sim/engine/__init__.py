"""Engines execute clients: in this process, in Ray actors or over a network."""
