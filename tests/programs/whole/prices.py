"""Regression: what the test returns are a loss and metrics that are no accuracy."""

import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x):
        return self.layers(x)


def load_data():
    x, y = load_diabetes(return_X_y=True)
    x, y = torch.tensor(x).float() * 20, torch.tensor((y - y.mean()) / y.std()).float()[:, None]
    return TensorDataset(x[:350], y[:350]), TensorDataset(x[350:], y[350:])


def train(net, loader, epochs, device, lr=0.05):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    losses = []
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(net(x.to(device)), y.to(device))
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return {"loss": torch.stack(losses).mean()}


def test(net, loader, device):
    with torch.no_grad():
        guess, target = zip(*((net(x.to(device)), y.to(device)) for x, y in loader), strict=True)
    guess, target = torch.cat(guess), torch.cat(target)
    mse = nn.functional.mse_loss(guess, target)
    return {"loss": mse, "mae": (guess - target).abs().mean(), "r2": 1 - mse / target.var(correction=0)}
