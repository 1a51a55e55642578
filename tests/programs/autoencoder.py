"""Batches without a target, and a model that takes the settings of the program."""

import argparse

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.narrow, self.wide = nn.Linear(6, args.width), nn.Linear(args.width, 6)

    def forward(self, values):
        return self.wide(torch.tanh(self.narrow(values)))


class Values(torch.utils.data.Dataset):
    def __init__(self, count):
        self.values = torch.randn(count, 6)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return self.values[index]


def load_data():
    return Values(40), Values(10)


def train(model, loader, epochs, lr=0.1):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for values in loader:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(values), values).backward()
        optimizer.step()


def test(model, loader):
    with torch.no_grad():
        return {"loss": sum(nn.functional.mse_loss(model(values), values).item() for values in loader) / len(loader)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=3)
    parser.parse_args()
