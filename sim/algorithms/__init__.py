"""The algorithms that change what clients do with the global model: a file each, with its client and server part."""
