"""A client, and what one process needs to be any client of a run."""

from sim.client.torch_client import CifarClient, TorchClient

__all__ = ["CifarClient", "TorchClient"]
