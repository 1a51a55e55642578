"""The shape of scripts whose functions use the variables of the module: ``train(epoch)`` and ``test(epoch)``."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--step-size", type=float, default=0.05)
args = parser.parse_args([])

generator = torch.Generator().manual_seed(0)
labels = torch.arange(120) % 4
images = torch.rand(120, 1, 8, 8, generator=generator)
images[torch.arange(120), 0, labels, :] += 1
trainset, testset = TensorDataset(images[:96], labels[:96]), TensorDataset(images[96:], labels[96:])
trainloader = DataLoader(trainset, batch_size=8, shuffle=True)
testloader = DataLoader(testset, batch_size=12)


class Classifying(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.hidden = nn.Linear(64, width)
        self.drop = nn.Dropout(0.1)
        self.last = nn.Linear(width, 4)

    def forward(self, x):
        return self.last(self.drop(F.relu(self.hidden(x.flatten(1)))))


net = Classifying(16)
teacher = Classifying(16).eval()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(net.parameters(), lr=args.step_size, momentum=0.9)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=6)


def step(inputs, targets):
    optimizer.zero_grad()
    outputs = net(inputs)
    loss = criterion(outputs, targets) + 0.1 * F.mse_loss(outputs, teacher(inputs))
    loss.backward()
    optimizer.step()
    scheduler.step()


def train(epoch):
    net.train()
    for inputs, targets in trainloader:
        step(inputs, targets)


def test(epoch):
    net.eval()
    correct = 0
    with torch.no_grad():
        for inputs, targets in testloader:
            correct += net(inputs).argmax(1).eq(targets).sum().item()
    return correct / len(testloader.dataset)


if __name__ == "__main__":
    for number in range(1, 4):
        train(number)
        print(test(number))
