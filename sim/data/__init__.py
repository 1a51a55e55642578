"""Data sets, partitions and the loader that training iterates over."""
