"""quickstart: a Flower / PyTorch app."""

import os
from functools import cache

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

EXAMPLES, TEST_EXAMPLES = 600, 2000  # of MNIST: per client, and in all


class Net(nn.Module):
    """Model (simple CNN adapted from 'PyTorch: A 60 Minute Blitz')."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 4 * 4, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 16 * 4 * 4)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


@cache
def _images():
    """MNIST of FEDEF_DATA; without it scikit-learn's digits, enlarged to 28x28."""
    folder = os.environ.get("FEDEF_DATA")
    if folder:
        with np.load(os.path.join(folder, "mnist.npz")) as file:
            train, test = (file["x_train"], file["y_train"]), (file["x_test"], file["y_test"])
            parts = [(torch.tensor(x) / 255, torch.tensor(y).long()) for x, y in (train, test)]
        parts[1] = tuple(part[:TEST_EXAMPLES] for part in parts[1])
        return [(x.float().view(-1, 1, 28, 28), y) for x, y in parts]
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images / 16).float().unsqueeze(1)
    x, y = F.interpolate(x, size=(28, 28)), torch.tensor(digits.target)
    return [(x[:1437], y[:1437]), (x[1437:], y[1437:])]


def load_data(partition_id: int, num_partitions: int, batch_size: int):
    """Load partition data."""
    train, test = _images()
    x, y = (part[partition_id::num_partitions][:EXAMPLES] for part in train)
    trainloader = DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=True)
    x, y = (part[partition_id::num_partitions] for part in test)
    testloader = DataLoader(TensorDataset(x, y), batch_size=256)
    return trainloader, testloader


def load_centralized_dataset():
    """Load test set and return dataloader."""
    return DataLoader(TensorDataset(*_images()[1]), batch_size=256)


def train(net, trainloader, epochs, lr, device):
    """Train the model on the training set."""
    net.to(device)
    criterion = torch.nn.CrossEntropyLoss().to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    running_loss = 0.0
    for _ in range(epochs):
        for images, labels in trainloader:
            optimizer.zero_grad()
            loss = criterion(net(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (epochs * len(trainloader))


def test(net, testloader, device):
    """Validate the model on the test set."""
    net.to(device)
    net.eval()
    criterion = torch.nn.CrossEntropyLoss()
    correct, loss = 0, 0.0
    with torch.no_grad():
        for images, labels in testloader:
            images, labels = images.to(device), labels.to(device)
            outputs = net(images)
            loss += criterion(outputs, labels).item()
            correct += (torch.max(outputs.data, 1)[1] == labels).sum().item()
    return loss / len(testloader), correct / len(testloader.dataset)
