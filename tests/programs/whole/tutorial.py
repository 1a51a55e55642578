"""The shape of PyTorch's CIFAR-10 tutorial: a CNN, SGD with momentum, four images per batch."""

import torch
from torch import nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc = nn.Linear(4 * 6 * 6, 10)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(F.relu(self.conv1(x))), 1))


def load_data():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 10
    images = torch.rand(200, 3, 16, 16, generator=generator) * 2 - 1
    images[torch.arange(200), labels % 3, labels] = 1.0
    train = TensorDataset(images[:160], labels[:160])
    return DataLoader(train, batch_size=4, shuffle=True), DataLoader(
        TensorDataset(images[160:], labels[160:]), batch_size=4
    )


def train(net, trainloader, epochs):
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    for _ in range(epochs):
        for inputs, labels in trainloader:
            optimizer.zero_grad()
            criterion(net(inputs), labels).backward()
            optimizer.step()


def test(net, testloader):
    correct = total = 0
    with torch.no_grad():
        for images, labels in testloader:
            correct += (net(images).argmax(1) == labels).sum().item()
            total += len(labels)
    return correct / total
