"""Changes settings when it is imported, as the first lines of many programs do."""

import torch

torch.set_default_dtype(torch.float64)
torch.set_num_threads(3)


def train(net, loader, epochs, device):
    return None
