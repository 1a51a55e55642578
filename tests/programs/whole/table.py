"""A table with an MLP and BCE-with-logits, one logit an example."""

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split


class MLP(nn.Module):
    def __init__(self, input_dim=30, hidden=16):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(input_dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, x):
        return self.layers(x)


def load_data(batch_size=16):
    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    data = TensorDataset(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)[:, None])
    train, test = random_split(data, [400, len(data) - 400])  # of the global generator
    return DataLoader(train, batch_size=batch_size, shuffle=True), DataLoader(test, batch_size=64)


def train(model, train_loader, epochs, learning_rate=0.01):
    criterion = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for _ in range(epochs):
        for x, y in train_loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()


def validate(model, val_loader):
    model.eval()
    correct = total = 0
    with torch.no_grad():
        for x, y in val_loader:
            correct += ((model(x) > 0) == (y > 0.5)).sum().item()
            total += len(y)
    return correct / total
