"""The shape of functions that take data sets and make loaders of their own."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def get_datasets():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(160, 5, generator=generator)
    y = (x.sum(1) > 0).long()
    return TensorDataset(x[:128], y[:128]), TensorDataset(x[128:], y[128:])


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 2))

    def forward(self, x):
        return self.layers(x)


def train(model, train_dataset, epochs, val_dataset=None, batch_size=16, lr=0.05):
    loader = DataLoader(train_dataset, batch_size=batch_size, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    model.train()
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()


def test(model, test_dataset):
    model.eval()
    total_loss, correct = 0.0, 0
    with torch.no_grad():
        for x, y in DataLoader(test_dataset, batch_size=64):
            outputs = model(x)
            total_loss += nn.functional.cross_entropy(outputs, y, reduction="sum").item()
            correct += (outputs.argmax(1) == y).sum().item()
    return total_loss / len(test_dataset), correct / len(test_dataset)


if __name__ == "__main__":
    trainset, testset = get_datasets()
    net = MLP()
    train(net, trainset, 3)
    print(test(net, testset))
