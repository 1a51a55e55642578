"""Scale studies: throughput, scaling and memory for different numbers of clients and actors (``sim scale``)."""
