"""What learned labels are held against in benchmarks/worth.py: a method is a function of a `Set` and a seed.

All networks and schedules are the same: an MLP of 256 hidden units, or a small network with BatchNorm for CIFAR-10; SGD
of momentum 0.9 and weight decay 5e-4 in batches of 64, 0.1 falling by a cosine; `Set.epochs` passes over the training
set, and as many steps where there are fewer rows.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from worth_sets import Set

BATCH, LR, MOMENTUM, DECAY = 64, 0.1, 0.9, 5e-4
FINETUNE_STEPS, FINETUNE_LR, FINETUNE_BATCH = 100, 0.02, 128


@dataclass
class Result:
    """What a method leaves behind."""

    test: float | None  # accuracy on the test set, None of a method without a network
    labels: np.ndarray  # (N,) classes of the training rows as the method reads them out
    scores: np.ndarray  # (N,) larger where the given label looks wrong
    seconds: float  # of one CPU thread, whatever else runs on the machine
    more: dict[str, Any] = field(default_factory=dict)  # for the file


Method = Callable[[Set, int], Result]


# ---- networks ----


def network(data: Set, seed: int) -> nn.Module:
    """Freshly initialised, by `seed`."""
    torch.manual_seed(seed)
    if data.x_train.ndim == 2:
        return nn.Sequential(nn.Linear(data.x_train.shape[1], 256), nn.ReLU(), nn.Linear(256, data.num_classes))

    def block(inside: int, outside: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outside), nn.ReLU(), nn.MaxPool2d(2)]

    blocks = [*block(data.x_train.shape[1], 16), *block(16, 32), *block(32, 64)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, data.num_classes))


def logits(model: nn.Module, x: np.ndarray | Tensor) -> Tensor:
    """(N, C) in evaluation mode."""
    mode = model.training
    model.eval()
    with torch.no_grad():
        found = torch.cat([model(part) for part in torch.as_tensor(x).split(1000)])
    model.train(mode)
    return found


def accuracy(model: nn.Module, x: np.ndarray, y: np.ndarray) -> float:
    return float((logits(model, x).argmax(1).numpy() == y).mean())


def tested(data: Set, model: nn.Module) -> tuple[float, dict[str, Any]]:
    """Accuracy on the test set, and the mean over classes of their own, where classes differ in size."""
    hits = logits(model, data.x_test).argmax(1).numpy() == data.y_test
    by_class = [hits[data.y_test == c].mean() for c in range(data.num_classes)]
    return float(hits.mean()), {"test_by_class": float(np.mean(by_class))}


@dataclass
class Trained:
    model: nn.Module
    seconds: float  # of the CPU
    epochs: list[dict[str, Tensor]]  # weights behind each epoch


def trained(data: Set, x: np.ndarray, targets: np.ndarray, seed: int, *, keep: bool = False) -> Trained:
    """The network on `x` with `targets`, (n,) classes or (n, C) probabilities."""
    began = time.process_time()
    model = network(data, seed)
    xs, ys = torch.as_tensor(x), torch.as_tensor(targets)
    batch = min(BATCH, len(xs))
    per_epoch = len(xs) // batch
    total = data.epochs * (len(data.x_train) // min(BATCH, len(data.x_train)))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    generator = torch.Generator().manual_seed(seed)
    epochs, step = [], 0
    model.train()
    while step < total:
        for rows in torch.randperm(len(xs), generator=generator)[: per_epoch * batch].split(batch):
            optimizer.param_groups[0]["lr"] = LR * (1 + math.cos(math.pi * step / total)) / 2
            loss = cross_entropy(model(xs[rows]), ys[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step == total:
                break
        if keep:
            epochs.append({k: v.clone() for k, v in model.state_dict().items()})
    return Trained(model, time.process_time() - began, epochs)


@lru_cache(2)
def _on_given(data: Set, seed: int) -> Trained:
    """Shared by the methods that start from it; each counts its seconds."""
    return trained(data, data.x_train, data.y_given, seed, keep=True)


def union(data: Set) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([data.x_train, data.x_meta]), np.concatenate([data.y_given, data.y_meta])


def finetuned_model(data: Set, model: nn.Module, seed: int) -> nn.Module:
    """A copy after a hundred steps on the clean rows, in training mode: BatchNorm does better so than with statistics
    that stand still."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=FINETUNE_LR, momentum=MOMENTUM)
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.as_tensor(data.x_meta), torch.as_tensor(data.y_meta)
    for _ in range(FINETUNE_STEPS):
        rows = torch.randperm(len(x), generator=generator)[:FINETUNE_BATCH]
        loss = cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def doubt(probs: np.ndarray, given: np.ndarray) -> np.ndarray:
    """One less the probability of the given label."""
    return 1 - probs[np.arange(len(given)), given]


def read_off(data: Set, model: nn.Module, seconds: float, *, relabel: bool = True, **more: Any) -> Result:
    """Labels and scores of a network's predictions; without `relabel` labels stay as given."""
    probs = logits(model, data.x_train).double().softmax(1).numpy()
    labels = probs.argmax(1) if relabel else data.y_given
    test, by_class = tested(data, model)
    return Result(test, labels, doubt(probs, data.y_given), seconds, {**by_class, **more})


# ---- rivals with the network ----


def given(data: Set, seed: int) -> Result:
    """Trained on the labels as given, which stay."""
    run = _on_given(data, seed)
    return read_off(data, run.model, run.seconds, relabel=False)


def given_union(data: Set, seed: int) -> Result:
    """Trained on the given labels and the clean rows together."""
    run = trained(data, *union(data), seed)
    return read_off(data, run.model, run.seconds, relabel=False)


def clean(data: Set, seed: int) -> Result:
    """Trained on the clean rows alone."""
    run = trained(data, data.x_meta, data.y_meta, seed)
    return read_off(data, run.model, run.seconds)


def soft_start(num_classes: int) -> float:
    """Probability of the given class: 0.4, and more where that would hardly lead: 0.7 of two classes, 0.47 of three."""
    return max(0.4, 1.4 / num_classes)


def softened(data: Set, seed: int) -> Result:
    """The given class has probability 0.4, as :func:`soft_start` says, the others share the rest, and nothing moves."""
    leads = soft_start(data.num_classes)
    others = (1 - leads) / (data.num_classes - 1)
    soft = others + (leads - others) * one_hot(torch.as_tensor(data.y_given), data.num_classes)
    run = trained(data, data.x_train, soft.float().numpy(), seed)
    return read_off(data, run.model, run.seconds)


def early(data: Set, seed: int) -> Result:
    """Trained as given, read at the epoch that does best on the clean rows, the first of equals."""
    run = _on_given(data, seed)
    began, model, found = time.process_time(), network(data, seed), []
    for weights in run.epochs:
        model.load_state_dict(weights)
        found.append(accuracy(model, data.x_meta, data.y_meta))
    best = int(np.argmax(found))
    model.load_state_dict(run.epochs[best])
    return read_off(data, model, run.seconds + time.process_time() - began, epoch=best + 1)


def finetuned(data: Set, seed: int) -> Result:
    """Trained as given, then a hundred steps on the clean rows."""
    run = _on_given(data, seed)
    began = time.process_time()
    model = finetuned_model(data, run.model, seed)
    return read_off(data, model, run.seconds + time.process_time() - began)


# ---- rivals of scikit-learn and cleanlab ----


@lru_cache(2)
def flat(data: Set) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Train, clean and test rows as scikit-learn takes them: images beyond 256 numbers by 128 principal components."""
    from sklearn.decomposition import PCA

    parts = [x.reshape(len(x), -1) for x in (data.x_train, data.x_meta, data.x_test)]
    if parts[0].shape[1] > 256:
        found = PCA(128, random_state=0).fit(parts[0])
        scale = found.transform(parts[0]).std()
        parts = [found.transform(x) / scale for x in parts]
    return parts[0], parts[1], parts[2]


def classical(data: Set) -> Any:
    """A kernel SVM; logistic regression on texts."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    return LogisticRegression(max_iter=1000) if data.texts else SVC()


def classical_test(data: Set, labels: np.ndarray) -> float | None:
    """Test accuracy of :func:`classical` on the training rows with `labels`; None where one class is left."""
    x, _, x_test = flat(data)
    return None if len(np.unique(labels)) < 2 else float(classical(data).fit(x, labels).score(x_test, data.y_test))


def classical_given(data: Set, seed: int) -> Result:
    """The same of labels as given; which look wrong is told by logistic regression, cross-validated."""
    return _classical(data, union_too=False)


def classical_union(data: Set, seed: int) -> Result:
    return _classical(data, union_too=True)


def _classical(data: Set, union_too: bool) -> Result:
    began = time.process_time()
    x, x_meta, x_test = flat(data)
    y = data.y_given
    if union_too:
        x, y = np.concatenate([x, x_meta]), np.concatenate([y, data.y_meta])
    model = classical(data).fit(x, y)
    test = float(model.score(x_test, data.y_test))
    # scores that rank: how far the given class lies below the best one
    scores = model.decision_function(x[: len(data.y_given)])
    if scores.ndim == 1:
        scores = np.stack([-scores, scores], 1)
    column = np.searchsorted(model.classes_, data.y_given)
    away = scores.max(1) - scores[np.arange(len(scores)), column]
    return Result(test, model.classes_[scores.argmax(1)], away, time.process_time() - began)


def cleanlab(data: Set, seed: int) -> Result:
    """cleanlab's finder on out-of-sample predictions of logistic regression (5 folds); found rows leave training.

    The network trains on the rows that stay and the clean ones; a found label becomes the prediction.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    began = time.process_time()
    x, *_ = flat(data)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the solver might go on for longer
        probs = cross_val_predict(LogisticRegression(max_iter=300), x, data.y_given, cv=folds, method="predict_proba")
    found = find_label_issues(data.y_given, probs, n_jobs=1)
    scores = 1 - get_label_quality_scores(data.y_given, probs)
    labels = np.where(found, probs.argmax(1), data.y_given)
    rows = np.concatenate([data.x_train[~found], data.x_meta])
    model = trained(data, rows, np.concatenate([data.y_given[~found], data.y_meta]), seed).model
    test, by_class = tested(data, model)
    return Result(test, labels, scores, time.process_time() - began, {**by_class, "found": int(found.sum())})


RIVALS: dict[str, Method] = {
    "given": given,
    "union": given_union,
    "clean": clean,
    "softened": softened,
    "early": early,
    "finetuned": finetuned,
    "cleanlab": cleanlab,
    "classical-given": classical_given,
    "classical-union": classical_union,
}
