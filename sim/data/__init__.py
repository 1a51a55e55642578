"""Data sets, their partition into clients, and the loader that makes batches of examples."""
