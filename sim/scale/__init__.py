"""Throughput, scaling and memory over numbers of clients and actors (``sim scale``)."""
