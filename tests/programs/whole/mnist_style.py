"""Digits normalised to values outside of −1…1; train is for one epoch and asks for args and an optimizer."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.drop = nn.Dropout(0.25)
        self.out = nn.Linear(4 * 3 * 3, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return F.log_softmax(self.out(self.drop(torch.flatten(x, 1))), dim=1)


def get_loaders():
    digits = load_digits()
    pixels = (torch.tensor(digits.images / 16, dtype=torch.float32)[:, None] - 0.1307) / 0.3081
    labels = torch.tensor(digits.target)
    train_set, test_set = TensorDataset(pixels[:400], labels[:400]), TensorDataset(pixels[400:500], labels[400:500])
    return DataLoader(train_set, batch_size=32, shuffle=True), DataLoader(test_set, batch_size=100)


def train(args, model, device, train_loader, optimizer, epoch):
    model.train()
    for batch_idx, (data, target) in enumerate(train_loader):
        optimizer.zero_grad()
        loss = F.nll_loss(model(data.to(device)), target.to(device))
        loss.backward()
        optimizer.step()
        if batch_idx % args.log_interval == 0 and args.dry_run:
            break


def test(model, device, test_loader):
    model.eval()
    loss = correct = 0
    with torch.no_grad():
        for data, target in test_loader:
            output = model(data.to(device))
            loss += F.nll_loss(output, target.to(device), reduction="sum").item()
            correct += output.argmax(dim=1, keepdim=True).eq(target.view(-1, 1)).sum().item()
    size = len(test_loader.dataset)
    return {"loss": loss / size, "accuracy": correct / size}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--log-interval", type=int, default=10)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    model = Net()
    train_loader, test_loader = get_loaders()
    train(args, model, "cpu", train_loader, optim.SGD(model.parameters(), lr=0.1), 1)
    print(test(model, "cpu", test_loader))


if __name__ == "__main__":
    main()
