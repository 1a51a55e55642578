"""Training and testing in plain PyTorch. Nothing in this folder knows Flower."""

from sim.training.local import test, train

__all__ = ["test", "train"]
