"""Images with ImageNet's normalisation and random augmentation, and a ResNet-18 of torchvision."""

import torch
import torchvision
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

NORMALIZE = v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


class Pictures(Dataset):
    def __init__(self, count, transform):
        generator = torch.Generator().manual_seed(count)
        self.targets = [index % 4 for index in range(count)]
        self.pixels = torch.rand(count, 3, 16, 16, generator=generator)
        self.transform = transform

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.transform(self.pixels[index]), self.targets[index]


def load_data():
    augment = v2.Compose([v2.RandomCrop(16, padding=2), v2.RandomHorizontalFlip(), NORMALIZE])
    train = DataLoader(Pictures(48, augment), batch_size=16, shuffle=True, drop_last=True)
    return train, DataLoader(Pictures(20, NORMALIZE), batch_size=20)


def build_model(num_classes):
    return torchvision.models.resnet18(num_classes=num_classes)


def train(model, dataloader, criterion, optimizer, device, num_epochs):
    model.train()
    total = 0.0
    for _ in range(num_epochs):
        for images, labels in dataloader:
            optimizer.zero_grad()
            loss = criterion(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            total += loss.item() / len(dataloader)
    return total / num_epochs


def evaluate(model, dataloader, criterion, device):
    model.eval()
    with torch.no_grad():
        logits, labels = zip(*((model(x.to(device)), y.to(device)) for x, y in dataloader), strict=True)
    logits, labels = torch.cat(logits), torch.cat(labels)
    return criterion(logits, labels).item(), {"accuracy": (logits.argmax(1) == labels).float().mean()}
