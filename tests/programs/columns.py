"""Tables as programs keep them: dicts with several targets, and measurements in the order of the file."""

import torch
from torch.utils.data import DataLoader, TensorDataset

DRAWN = torch.Generator().manual_seed(5)
FEATURES = torch.randn(120, 6, generator=DRAWN)
TARGETS = (FEATURES @ torch.randn(6, 3, generator=DRAWN) > 0).float()


class WithDropout(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.last, self.dropout = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3), torch.nn.Dropout(0.0)

    def forward(self, features):
        return self.last(self.dropout(torch.tanh(self.hidden(features))))


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent, self.last = torch.nn.LSTM(1, 4, batch_first=True), torch.nn.Linear(4, 3)

    def forward(self, features):
        return self.last(self.recurrent(features.unsqueeze(2))[0][:, -1])


class _Dicts(torch.utils.data.Dataset):
    def __init__(self, first, last):
        self.positions = range(first, last)

    def __len__(self):
        return len(self.positions)

    def __getitem__(self, index):
        position = self.positions[index]
        return {"features": FEATURES[position], "labels": TARGETS[position]}


def dicts():
    return DataLoader(_Dicts(0, 100), batch_size=7, shuffle=True, drop_last=True), DataLoader(_Dicts(100, 120))


def measurements():
    train = TensorDataset(FEATURES[:100], FEATURES[:100].sum(1, keepdim=True))
    return DataLoader(train, batch_size=8), TensorDataset(FEATURES[100:], FEATURES[100:].sum(1, keepdim=True))


def loss(outputs, targets):
    return (outputs - targets).abs().mean()
