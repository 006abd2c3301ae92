"""A training loop without and with learned labels: ``python examples/loop.py``, about ten seconds.

The handwritten digits of scikit-learn: 1,200 to train on, the labels of 40% of them drawn at random (a tenth of which
come out right), 500 to test on, and 97 whose labels are clean.
"""

import torch
from sklearn.datasets import load_digits

import fastmeta

torch.manual_seed(0)
x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
x = x.float() / 16
train, test, clean = slice(0, 1200), slice(1200, 1700), slice(1700, None)
noisy = torch.where(torch.rand(1200) < 0.4, torch.randint(10, (1200,)), y[train])


def run(learn: bool) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    labels = fastmeta.InstanceLabels(noisy, num_classes=10, target_prob=0.4)
    step = fastmeta.MetaStep(model, labels, optimizer, label_lr=300, unique_index=True)

    for _ in range(60):
        for index in torch.randperm(1200).split(100):
            if learn:
                step((x[index], index), (x[clean], y[clean]))
            else:
                loss = torch.nn.functional.cross_entropy(model(x[index]), noisy[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    learned = labels.probs().argmax(1) if learn else noisy
    accuracy = (model(x[test]).argmax(1) == y[test]).float().mean()
    right = (learned == y[train]).float().mean()
    name = "learned" if learn else "given"
    print(f"{name} labels: {accuracy:.1%} of the test images right, {right:.1%} of the labels")


if __name__ == "__main__":
    run(learn=False)
    run(learn=True)
