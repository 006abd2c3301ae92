"""The four scales: from the recipe of a published setting to the config of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from fastmeta import recipes
from fastmeta._text import shown
from fastmeta.data import InputError
from fastmeta.methods import METHODS
from fastmeta.recipes import Recipe
from fastmeta.training import TrainConfig

ScaleName = Literal["full", "short", "cpu", "smoke"]
NAMES: tuple[ScaleName, ...] = ("full", "short", "cpu", "smoke")
_SETTINGS = Path(__file__).with_name("settings")

#: the paper's networks by the end of a recipe's name, and the AlexNet of distillation
NETWORKS = {
    "full": {"resnet18": "resnet18", "vgg16": "vgg16_bn", "alexnet": "alexnet", "wrn28_10": "wrn28_10"},
    "short": {"resnet18": "resnet18", "vgg16": "vgg16_bn", "alexnet": "alexnet", "wrn28_10": "resnet18"},
    "cpu": {
        "resnet18": "fastmeta.models.narrow:narrow_resnet",
        "vgg16": "fastmeta.models.narrow:narrow_plain",
        "alexnet": "fastmeta.models.narrow:narrow_alexnet",
        "wrn28_10": "fastmeta.models.narrow:narrow_resnet",
    },
    "smoke": {
        "resnet18": "mlp",
        "vgg16": "fastmeta.models.digits:digits_conv",
        "alexnet": "fastmeta.models.digits:digits_conv",
        "wrn28_10": "mlp",
    },
}


@dataclass(frozen=True)
class Scale:
    """One of `NAMES`, with the data that the user has named."""

    name: ScaleName
    out: Path
    data: Mapping[str, Path] = field(default_factory=dict)
    """By cifar10 and cifar100, an npz file with all of its images; without one it is read by torchvision."""
    root: str | None = None
    """Folder of torchvision's files."""

    @property
    def seeds(self) -> int:
        """How many there are where nobody says."""
        return {"full": 3, "short": 1, "cpu": 3, "smoke": 1}[self.name]

    @property
    def smoke(self) -> bool:
        return self.name == "smoke"

    @property
    def on(self) -> str:
        """The data that stand for the paper's, in words; nothing where they are the paper's own."""
        return {"cpu": "a part of CIFAR-10", "smoke": "digits"}.get(self.name, "")

    @property
    def every(self) -> int:
        """Epochs from one snapshot of the labels to the next."""
        return 1 if self.name in ("cpu", "smoke") else 5

    def network(self, name: str) -> str:
        """The model that stands for resnet18, vgg16, alexnet or wrn28_10 of the paper."""
        return NETWORKS[self.name][name]

    def dataset(self, name: str) -> str:
        """What stands for cifar10 or cifar100: digits, cifar10 or cifar100."""
        return {"smoke": DIGITS, "cpu": "cifar10"}.get(self.name, name)

    def config(self, recipe: str, method: str, *, network: str | None = None, **over: Any) -> TrainConfig:
        """The config of a run of `method` in the setting of a shipped recipe, at this scale.

        Args:
            recipe: such as cifar10-a; at scales cpu and smoke its stand-in below settings/.
            network: resnet18, vgg16, alexnet or wrn28_10 in place of the recipe's own.
            over: laid over all, ``{"labels.target_prob": 0.7}`` or ``labels={...}``; see :meth:`Recipe.config`.
        """
        found, own = self.recipe(recipe), self._over(recipe)
        if network is not None:
            own["model"] = self.network(network)
        if "trajectory_every" in METHODS[method].supports:
            own["trajectory_every"] = self.every
        return found.config(method, **{**own, **over})

    def recipe(self, name: str) -> Recipe:
        """The recipe, or its stand-in at this scale."""
        if self.name in ("full", "short"):
            return recipes.read(name)
        kind = "noise" if name.endswith(("-a", "-b")) else "supervised"
        return _stand_in(f"{self.name}-{kind}")

    def _over(self, recipe: str) -> dict[str, Any]:
        """Network and data of this scale."""
        data, _, setting = recipe.partition("-")
        dataset = self.dataset(data)
        if dataset == DIGITS and setting not in ("a", "b"):
            dataset = NOISY_DIGITS
        own: dict[str, Any] = {"dataset": self._source(dataset)}
        if self.name != "full":
            own["model"] = self.network(setting if setting in ("resnet18", "vgg16") else "wrn28_10")
        if own["dataset"] == data and self.root is not None:
            own["data.root"] = self.root
        if self.name == "short":
            own |= SHORT["noise" if setting in ("a", "b") else "supervised"]
        return own

    def _source(self, dataset: str) -> str:
        if self.name in ("cpu", "smoke"):
            return f"npz:{self.part(dataset)}"
        return f"npz:{self.data[dataset]}" if dataset in self.data else dataset

    def part(self, dataset: str) -> Path:
        """The file with the part of a data set that scales cpu and smoke train on."""
        return self.out / "data" / f"{dataset}-{PARTS[dataset][0]}.npz"

    def notes(self) -> list[str]:
        """What differs from the paper's setting at this scale, in sentences."""
        return list(NOTES[self.name])


DIGITS = "digits"
#: the same with half of the training labels drawn anew, for settings without noise: so that learned labels have a task
NOISY_DIGITS = "noisy-digits"
#: training and test rows of what scales cpu and smoke train on: the first of each class, in the order of the data set
PARTS = {"cifar10": (4000, 2000), "cifar100": (4000, 2000), DIGITS: (1000, 500), NOISY_DIGITS: (1000, 500)}
NOTES: Mapping[str, tuple[str, ...]] = {
    "full": (),
    "short": ("Fewer epochs than in the paper, in bf16; ResNet-18 in place of WRN-28-10.",),
    "cpu": (
        "Data: the first 4,000 training and 2,000 test images of CIFAR-10, as many of each class, in place of 50,000 "
        "and 10,000. Where the paper has CIFAR-100, the numbers here are of CIFAR-10 all the same.",
        "Networks: narrow ones of fastmeta.models.narrow, of 75,000 parameters and less.",
        "One schedule for all settings: 12 epochs, under noise 15, of SGD at 0.1 with momentum 0.9, falling as a "
        "cosine to zero, batches of 100, no augmentation. Under noise 200 images are the clean set, not 1,000.",
    ),
    "smoke": (
        "Data: 1,000 training and 500 test digits of scikit-learn, in place of CIFAR. The numbers say nothing of the "
        "paper's: this scale shows that the command works, and one sign.",
        "Where the paper has no noise, half of the digits' training labels are drawn anew, so that a sign shows.",
    ),
}
#: scale short, over the recipes: about 20 minutes of a data-centre GPU for one column of table 6, or of table 1
SHORT: Mapping[str, Mapping[str, Any]] = {
    "noise": {"max_steps": None, "epochs": 10, "precision": "bf16"},
    "supervised": {"epochs": 8, "precision": "bf16"},
}


@cache
def _stand_in(name: str) -> Recipe:
    return recipes.read(_SETTINGS / f"{name}.toml")


def scale_name(name: str) -> ScaleName:
    """InputError for another than `NAMES`."""
    for known in NAMES:
        if name == known:
            return known
    raise InputError(f"scale must be one of {', '.join(NAMES)}, got {shown(name)}")
