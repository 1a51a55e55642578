"""Text classification: sentences of different lengths, padded by a collate_fn that makes dicts."""

import torch
from torch import nn
from torch.utils.data import DataLoader

GOOD, BAD = ["good", "great", "fine", "nice"], ["bad", "poor", "awful", "sad"]
REST = ["the", "a", "film", "plot", "was", "is", "very", "quite"]
VOCAB = {word: index + 1 for index, word in enumerate([*GOOD, *BAD, *REST])}


class Sentences(torch.utils.data.Dataset):
    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)

        def pick(words):
            return words[int(torch.randint(len(words), (), generator=generator))]

        self.items = []
        for index in range(count):
            words = [pick(REST) for _ in range(int(torch.randint(3, 9, (), generator=generator)))]
            words.insert(len(words) // 2, pick(GOOD if index % 2 else BAD))
            self.items.append({"words": words, "label": index % 2})

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def collate(batch):
    tokens = [torch.tensor([VOCAB[word] for word in item["words"]]) for item in batch]
    return {
        "input_ids": nn.utils.rnn.pad_sequence(tokens, batch_first=True),
        "lengths": torch.tensor([len(each) for each in tokens]),
        "labels": torch.tensor([item["label"] for item in batch]),
    }


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(len(VOCAB) + 1, 8, padding_idx=0)
        self.out = nn.Linear(8, 2)

    def forward(self, input_ids, lengths):
        return self.out(self.embed(input_ids).sum(1) / lengths[:, None])


def get_dataloaders():
    train = DataLoader(Sentences(200, 0), batch_size=16, shuffle=True, collate_fn=collate)
    return train, DataLoader(Sentences(60, 1), batch_size=30, collate_fn=collate)


def train(model, train_dataloader, optimizer, loss_fn):
    model.train()
    for batch in train_dataloader:
        labels = batch.pop("labels")
        optimizer.zero_grad()
        loss_fn(model(**batch), labels).backward()
        optimizer.step()


def evaluate(model, test_dataloader, loss_fn):
    model.eval()
    losses, hits = [], []
    with torch.no_grad():
        for batch in test_dataloader:
            labels = batch.pop("labels")
            logits = model(**batch)
            losses.append(loss_fn(logits, labels))
            hits.append((logits.argmax(1) == labels).float().mean())
    return torch.stack(losses).mean(), torch.stack(hits).mean()
