"""A soft label for each sample by a net of what the network sees and of the given label."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from fastmeta._numbers import as_whole, shown
from fastmeta.losses.labels import check_targets
from fastmeta.losses.learnable_loss import LearnableLoss

#: what the net sees of a sample beside its given label
Features = Literal["logits", "input"]


class LabelCorrector(LearnableLoss):
    """l_i = -sum_k p_ik log q_ik with p_i = softmax(net(features_i, embedding(y_i))): a label corrector.

    The net is features + `embedding` - `hidden` - `hidden` - C with tanh. Its features are constant: the network's
    prediction softmax(z_i), or its input x_i, flattened. Zheng, Awadallah, Dumais, *Meta Label Correction for Noisy
    Label Learning*, 2021, takes the features before the network's last layer, which a loss does not see.

        loss = fastmeta.LabelCorrector(targets, num_classes)
        adam = torch.optim.Adam(loss.parameters(), lr=3e-4)
        step = fastmeta.MetaStep(model, loss, optimizer, loss_optimizer=adam)

    The net is float32, whatever the logits are; ``loss.double()`` makes it float64.

    Args:
        targets: (N,) given hard labels, any integer dtype.
        num_classes: C >= 2.
        features: "logits" or "input".
        input_size: numbers in one x, for features of the input; x must be one tensor (n, ...).
        embedding: size of the given label's embedding.
        hidden: units of each hidden layer.

    Raises:
        ValueError: targets of a wrong shape, dtype or range; a size below 1; other features, or no input_size for them.
    """

    targets: Tensor
    num_classes: int

    def __init__(
        self,
        targets: Tensor,
        num_classes: int,
        *,
        features: Features = "logits",
        input_size: int | None = None,
        embedding: int = 128,
        hidden: int = 128,
    ) -> None:
        super().__init__()
        targets, self.num_classes = check_targets(targets, num_classes)
        if features not in get_args(Features):
            raise ValueError(f"features must be logits or input, got {shown(features)}")
        if (features == "input") != (input_size is not None):
            raise ValueError(
                f"input_size is the numbers in one x for features=input, got features={features} and "
                f"input_size={shown(input_size)}"
            )
        self.features: Features = features
        sizes = {"embedding": embedding, "hidden": hidden, "input_size": self.num_classes}
        if input_size is not None:
            sizes["input_size"] = input_size
        whole = {name: as_whole(size) for name, size in sizes.items()}
        for name, size in whole.items():
            if size is None or size < 1:
                raise ValueError(f"{name} must be a whole number from 1 on, got {shown(sizes[name])}")
        self.register_buffer("targets", targets)
        wide, units, seen = (int(whole[name] or 0) for name in ("embedding", "hidden", "input_size"))
        self.embedding = nn.Embedding(self.num_classes, wide)
        self.net = nn.Sequential(
            nn.Linear(seen + wide, units),
            nn.Tanh(),
            nn.Linear(units, units),
            nn.Tanh(),
            nn.Linear(units, self.num_classes),
        )
        nn.init.xavier_uniform_(self.embedding.weight)
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.to(targets.device)

    def probs(self, logits: Tensor, index: Tensor, x: Any = None) -> Tensor:
        """Label distributions (n, C) of the rows `index`, with logits (n, C) of the network and its input x."""
        wide = self.embedding.weight.dtype
        if self.features == "logits":
            seen = logits.detach().softmax(1)
        else:
            if not isinstance(x, Tensor):
                raise ValueError(f"features=input take an x that is one tensor (n, ...), got {type(x).__name__}")
            seen = x.detach().flatten(1)
        given = self.embedding(self.given(index).clamp(min=0))
        made: Tensor = self.net(torch.cat([seen.to(wide), given], 1)).softmax(1)
        return made.to(logits.dtype)

    def forward(self, logits: Tensor, index: Tensor, x: Any = None) -> Tensor:
        """Cross-entropy (n,) of each row with its corrected label."""
        return -(self.probs(logits, index, x) * log_softmax(logits, 1)).sum(1)

    def extra_repr(self) -> str:
        return f"N={len(self.targets)}, num_classes={self.num_classes}, features={self.features}"
