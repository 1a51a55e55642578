"""The engine that executes clients in Ray actors. Ray is imported in this folder only."""
