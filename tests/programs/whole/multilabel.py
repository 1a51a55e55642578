"""Multi-label images: zeros and ones as target, one logit a label."""

import torch
from torch import nn
from torch.utils.data import StackDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * 8 * 8, 5)

    def forward(self, x):
        return self.fc(x.flatten(1))


def load_data():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(160, 5, generator=generator) < 0.5).float()
    images = torch.rand(160, 3, 8, 8, generator=generator) * 2 - 1
    for k in range(5):
        images[labels[:, k] == 1, :, k] *= 0.2
    return StackDataset(images[:120], labels[:120]), StackDataset(images[120:], labels[120:])


def train(net, loader, epochs, device):
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(net(x), y).backward()
            optimizer.step()


def test(net, loader, device):
    with torch.no_grad():
        logits, y = zip(*((net(x), y) for x, y in loader), strict=True)
    logits, y = torch.cat(logits), torch.cat(y)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, y)
    return loss.item(), ((logits > 0) == (y > 0)).float().mean().item()
