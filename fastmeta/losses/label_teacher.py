"""A soft label for each sample by a network of its own, which also says how far to trust the given label."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, log_softmax

from fastmeta._numbers import as_whole, shown
from fastmeta.functional.call import call_model, pick_logits
from fastmeta.losses.labels import check_targets
from fastmeta.losses.learnable_loss import LearnableLoss

#: which wrong labels of clean rows teach the retention net; "none": it learns by the meta-gradient alone
Injection = Literal["none", "adversarial", "random"]


class Seen(NamedTuple):
    """What the teacher's network makes of a batch."""

    logits: Tensor  # (n, C)
    features: Tensor  # (n, d), the input of its last layer


class LabelTeacher(LearnableLoss):
    """l_i = -sum_k p_ik log q_ik with p_i = c_i onehot(y_i) + (1 - c_i) softmax(t_i): a teacher makes the label.

        t_i = network(x_i),    h_i the input of the network's last layer
        c_i = sigmoid(net(h_i, embedding(y_i)))     how far the given label is kept

    The retention net is d + `embedding` - `hidden` - 1 with ReLU, d the features.

    Taraday, Baskin, *Enhanced Meta Label Correction for Coping with Label Corruption*, 2023 (EMLC). The teacher also
    learns from clean rows, by :meth:`clean_loss`, which a meta step knows nothing of: the program adds its gradient.

        loss = fastmeta.LabelTeacher(targets, num_classes, network)
        sgd = torch.optim.SGD(loss.parameters(), lr=0.02)
        step = fastmeta.MetaStep(
            model, loss, optimizer, loss_optimizer=sgd, lookahead="optimizer", approx="delayed"
        )

    Args:
        targets: (N,) given hard labels, any integer dtype.
        num_classes: C >= 2.
        network: of x as the model takes it, with logits (n, C); it becomes part of this loss, and shares nothing with
            the model. Its last layer is the last torch.nn.Linear with C outputs, in the order of its modules.
        embedding: size of the given label's embedding.
        hidden: units of the retention net.

    Raises:
        ValueError: targets of a wrong shape, dtype or range; a size below 1; a network without such a last layer.
    """

    targets: Tensor
    num_classes: int

    def __init__(
        self, targets: Tensor, num_classes: int, network: nn.Module, *, embedding: int = 128, hidden: int = 128
    ) -> None:
        super().__init__()
        targets, self.num_classes = check_targets(targets, num_classes)
        sizes = {"embedding": embedding, "hidden": hidden}
        whole = {name: as_whole(size) for name, size in sizes.items()}
        for name, size in whole.items():
            if size is None or size < 1:
                raise ValueError(f"{name} must be a whole number from 1 on, got {shown(sizes[name])}")
        last = [
            (name, m.in_features)
            for name, m in network.named_modules()
            if isinstance(m, nn.Linear) and m.out_features == self.num_classes
        ]
        if not last:
            raise ValueError(
                f"the teacher's network needs a torch.nn.Linear with {self.num_classes} outputs, whose input are the "
                f"features; {type(network).__name__} has none"
            )
        self.last, features = last[-1]
        self.register_buffer("targets", targets)
        self.network = network
        wide, units = int(whole["embedding"] or 0), int(whole["hidden"] or 0)
        self.retention = Retention(self.num_classes, features, wide, units)
        self.to(targets.device)

    def see(self, x: Any) -> Seen:
        """Logits and features of a batch, in the mode that the network is in."""
        features: list[Tensor] = []
        # only for this call: a hook that stayed would make copies of the network write to this one
        hook = self.network.get_submodule(self.last).register_forward_pre_hook(lambda _, args: features.append(args[0]))
        try:
            logits = pick_logits(call_model(self.network, x))
        finally:
            hook.remove()
        if len(features) != 1 or features[0].ndim != 2 or len(features[0]) != len(logits):
            got = ", ".join(str(tuple(t.shape)) for t in features) or "nothing"
            raise ValueError(
                f"the teacher's last layer {self.last or 'itself'} must be given features (n, d) once for "
                f"{len(logits)} rows, got {got}; take another network"
            )
        return Seen(logits, features[0])

    def probs(self, index: Tensor, x: Any) -> Tensor:
        """Label distributions (n, C) of the rows `index`, whose network input is x."""
        return self.made(self.given(index).clamp(min=0), self.see(x))[0]

    def made(self, given: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """Label distributions (n, C) for given labels (n,), and how far these are kept, c (n,)."""
        q = seen.logits.softmax(1)
        c = self.retention(seen.features, given).sigmoid().to(q.dtype)
        kept = torch.zeros_like(q).scatter(1, given.unsqueeze(1), c.unsqueeze(1))
        return kept + (1 - c).unsqueeze(1) * q, c

    def forward(self, logits: Tensor, index: Tensor, x: Any = None) -> Tensor:
        """Cross-entropy (n,) of each row with its label."""
        return -(self.probs(index, x).to(logits.dtype) * log_softmax(logits, 1)).sum(1)

    def clean_loss(
        self, x: Any, y: Tensor, injection: Injection = "none", drawn: Tensor | None = None, first: int = 0
    ) -> Tensor:
        """Mean cross-entropy of the network on clean rows, 0-d, and with `injection` that of c with [label is right].

        Every second row is then shown to the retention net with another label than y: the likeliest wrong one
        ("adversarial"), or that of `drawn` (m,), which may be right ("random"). `first` is the place of the first row
        in the clean batch of all ranks.
        """
        if injection not in get_args(Injection):
            raise ValueError(f"injection must be none, adversarial or random, got {shown(injection)}")
        seen = self.see(x)
        loss = cross_entropy(seen.logits, y)
        if injection == "none":
            return loss
        if injection == "random":
            if drawn is None:
                raise ValueError("injection=random takes drawn, labels (m,)")
            other = drawn
        else:
            own = torch.zeros_like(seen.logits, dtype=torch.bool).scatter(1, y.unsqueeze(1), True)
            other = seen.logits.detach().masked_fill(own, -torch.inf).argmax(1)
        shown_label = torch.where(torch.arange(first, first + len(y), device=y.device) % 2 == 0, other, y)
        trust = self.retention(seen.features, shown_label)
        return loss + binary_cross_entropy_with_logits(trust, (shown_label == y).to(trust.dtype))

    def extra_repr(self) -> str:
        return f"N={len(self.targets)}, num_classes={self.num_classes}, last={self.last}"


class Retention(nn.Module):
    """The logit (n,) of c, of features (n, d) and given labels (n,)."""

    def __init__(self, num_classes: int, features: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, embedding)
        self.net = nn.Sequential(nn.Linear(features + embedding, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, features: Tensor, given: Tensor) -> Tensor:
        label = self.embedding(given)
        made: Tensor = self.net(torch.cat([features.to(label.dtype), label], 1))
        return made.squeeze(1)
