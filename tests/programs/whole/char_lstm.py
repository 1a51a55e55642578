"""A character-level LSTM: windows of int64 as inputs, the same shifted by one as targets."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

TEXT = "the quick brown fox jumps over the lazy dog and runs away from the slow red hen " * 20
CHARS = sorted(set(TEXT))
VOCAB_SIZE = len(CHARS)


class Windows(Dataset):
    def __init__(self, text, length):
        self.codes, self.length = torch.tensor([CHARS.index(c) for c in text]), length

    def __len__(self):
        return (len(self.codes) - 1) // self.length

    def __getitem__(self, index):
        start = index * self.length
        return self.codes[start : start + self.length], self.codes[start + 1 : start + self.length + 1]


class Net(nn.Module):
    def __init__(self, vocab_size=VOCAB_SIZE):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, 8)
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.out = nn.Linear(16, vocab_size)

    def forward(self, x):
        hidden, _ = self.lstm(self.embed(x))
        return self.out(hidden)


def load_data():
    data = Windows(TEXT, 8)
    cut = len(data) * 4 // 5
    train, test = Subset(data, range(cut)), Subset(data, range(cut, len(data)))
    return DataLoader(train, batch_size=16, shuffle=True), DataLoader(test, batch_size=64)


def train(net, loader, epochs, device):
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x).flatten(0, 1), y.flatten()).backward()
            optimizer.step()


def test(net, loader, device):
    with torch.no_grad():
        logits, target = zip(*((net(x).flatten(0, 1), y.flatten()) for x, y in loader), strict=True)
    logits, target = torch.cat(logits), torch.cat(target)
    loss = nn.functional.cross_entropy(logits, target)
    return loss.item(), {"perplexity": loss.exp().item()}
