"""The shape of models that train and test themselves: ``net.fit(loader, epochs)`` and ``net.evaluate(loader)``."""

import torch
from torch import nn
from torch.utils.data import TensorDataset


def load_data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(160, 6, generator=generator)
    y = (x @ torch.arange(6.0) > 0).long() + (x[:, 0] > 0).long()
    return TensorDataset(x[:128], y[:128]), TensorDataset(x[128:], y[128:])


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
        self.loss = nn.CrossEntropyLoss()

    def forward(self, x):
        return self.layers(x)

    def fit(self, loader, epochs=5, lr=0.02):
        optimizer = torch.optim.RMSprop(self.parameters(), lr=lr)
        self.train()
        for _ in range(epochs):
            for x, y in loader:
                optimizer.zero_grad()
                self.loss(self(x), y).backward()
                optimizer.step()

    def evaluate(self, loader):
        self.eval()
        total_loss, correct = 0.0, 0
        with torch.no_grad():
            for x, y in loader:
                outputs = self(x)
                total_loss += self.loss(outputs, y).item() * len(y)
                correct += (outputs.argmax(1) == y).sum().item()
        return correct / len(loader.dataset), total_loss / len(loader.dataset)


if __name__ == "__main__":
    from torch.utils.data import DataLoader

    train, test = load_data()
    net = Table()
    net.fit(DataLoader(train, batch_size=8, shuffle=True))
    print(net.evaluate(DataLoader(test, batch_size=32)))
