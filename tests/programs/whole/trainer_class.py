"""The shape of programs whose training and test are methods of a class, which has an optimizer of its own."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def get_loaders(batch_size=8):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 4
    images = torch.rand(120, 1, 8, 8, generator=generator)
    images[torch.arange(120), 0, labels, :] += 1
    trainset, testset = TensorDataset(images[:96], labels[:96]), TensorDataset(images[96:], labels[96:])
    return DataLoader(trainset, batch_size, shuffle=True), DataLoader(testset, batch_size=12)


class Digits(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4))

    def forward(self, x):
        return self.layers(x)


class History:
    def __init__(self):
        self.losses = []

    def evaluate(self):
        return self.losses[-1]


class Trainer:
    def __init__(self, model, train_loader, test_loader=None, criterion=None, lr=0.01, device="cpu"):
        self.model = model.to(device)
        self.train_loader, self.test_loader = train_loader, test_loader
        self.criterion = criterion or nn.CrossEntropyLoss(label_smoothing=0.1)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        self.device = device
        self.history = History()

    def train_epoch(self):
        self.model.train()
        for inputs, targets in self.train_loader:
            loss = self.criterion(self.model(inputs.to(self.device)), targets.to(self.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.history.losses.append(loss.item())

    def fit(self, epochs):
        for _ in range(epochs):
            self.train_epoch()
        return self.history.losses

    @torch.no_grad()
    def evaluate(self, loader):
        self.model.eval()
        correct = 0
        for inputs, targets in loader:
            correct += self.model(inputs.to(self.device)).argmax(1).eq(targets.to(self.device)).sum().item()
        return correct / len(loader.dataset)


if __name__ == "__main__":
    train_loader, test_loader = get_loaders()
    trainer = Trainer(Digits(), train_loader, test_loader)
    trainer.fit(3)
    print(trainer.evaluate(test_loader))
