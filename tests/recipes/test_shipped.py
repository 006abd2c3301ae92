"""The shipped recipes: published numbers and settings as the works have them, and each method trains by them."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from fastmeta import models, recipes
from fastmeta.methods import METHODS
from fastmeta.training.prepare import prepare
from fastmeta.training.schedule import lr_at
from tests.support import guides, recipe_list

DD = "MentorNet, mentor learned on clean data"
EMLC = "EMLC from a self-supervised start"
REPORT = "given labels, this schedule"
PRETRAINED = {EMLC}
CLEAN = {"instance_labels", "l2rw", "mwnet", DD, EMLC}

#: recipe and noise to "row test std" of all published rows, typed from design/paper.md
PAPER = {
    ("cifar10-a", "uniform:0.4"): f"""
        onehot 68.1 .2; focal 76.0 1.3; coteaching 74.8 .3; {DD} 87.3 .2; l2rw 86.9 .2; mwnet 89.3 .3;
        instance_labels 90.4 .1; {REPORT} 88.5""",
    ("cifar10-a", "uniform:0.6"): f"""
        onehot 53.1 3.0; focal 51.9 1.2; coteaching 73.1 .3; {DD} 82.8 1.4; l2rw 82.2 .4; mwnet 84.1 .3;
        instance_labels 85.7 .2""",
    ("cifar100-a", "uniform:0.4"): f"""
        onehot 51.1 .4; focal 51.2 .5; coteaching 46.2 .15; {DD} 61.4 4.0; l2rw 60.8 .9; mwnet 67.7 .3;
        instance_labels 69.7 .3""",
    ("cifar100-a", "uniform:0.6"): f"""
        onehot 30.9 .3; focal 27.7 3.7; coteaching 35.7 1.2; {DD} 36.9 1.5; l2rw 48.2 .3; mwnet 58.8 .1;
        instance_labels 59.4 .4""",
    **{("cifar10-a", f"uniform:{r}"): f"{EMLC} {v}" for r, v in ((0.2, 93.5), (0.5, 92.6), (0.8, 91.0), (0.9, 90.7))},
    **{("cifar100-a", f"uniform:{r}"): f"{EMLC} {v}" for r, v in ((0.2, 73.1), (0.5, 68.6), (0.8, 60.5), (0.9, 54.0))},
    ("cifar10-a-resnet32", "uniform:0.4"): "",
    ("cifar100-b", "uniform:0.2"): f"""
        onehot 60.0; mentornet 72.0; data_parameters 75.68 .12; {DD} 73.0; instance_labels 76.9 .3""",
    ("cifar100-b", "uniform:0.4"): f"""
        onehot 50.66 .24; mentornet 56.9; data_parameters 70.93 .15; {DD} 67.5; l2rw 61.34 2.06;
        instance_labels 71.8 .2""",
    ("cifar100-b", "uniform:0.8"): f"""
        onehot 8.0; mentornet 14.0; data_parameters 35.8 1.0; {DD} 35.0; instance_labels 35.6 .6""",
    ("cifar100-resnet18", "none"): """
        onehot 77.1 .3; class_labels 78.8 .2; instance_labels 79.2 .2; confidence_penalty 77.6 .3;
        label_smoothing 78.4 .2""",
    ("cifar100-vgg16", "none"): """
        onehot 74.5 .2; class_labels 74.9 .2; instance_labels 75.3 .3; confidence_penalty 74.1 .1;
        label_smoothing 74.6 .1""",
    ("cifar10-resnet18", "none"): """
        onehot 95.0 .1; class_labels 95.2 .1; instance_labels 95.3 .1; confidence_penalty 95.2 .1;
        label_smoothing 95.1 .3""",
    ("cifar10-vgg16", "none"): """
        onehot 93.9 .0; class_labels 94.1 .1; instance_labels 94.3 .1; confidence_penalty 94.0 .2;
        label_smoothing 94.2 .3""",
    ("cifar10n", "file:x/CIFAR-10_human.pt:worse_label"): "ProMix 96.34",
    ("cifar10n", "file:x/CIFAR-10_human.pt:aggre_label"): "",
    ("cifar100n", "file:x/CIFAR-100_human.pt:noisy_label"): "ProMix 73.79",
    ("noisyag-news", "file:x/noisyag-news.npz:y_train"): "",
}  # fmt: skip


def rows(text, noise):
    """(row, test, std, clean, pretrained) of each; without noise no clean data are used beside the training set."""
    for part in filter(None, (p.strip() for p in text.split(";"))):
        name, test, std = re.fullmatch(r"(.*?) (\d+\.\d+)(?: (\d*\.\d+))?", part).groups()
        yield (
            name,
            float(test),
            None if std is None else float(std),
            noise != "none" and name in CLEAN,
            name in PRETRAINED,
        )


@pytest.mark.parametrize("name", recipes.names())
def test_published_numbers_are_those_of_the_works(name):
    recipe = recipes.read(name)
    expected = {noise: set(rows(text, noise)) for (of, noise), text in PAPER.items() if of == name}
    assert expected, f"{name} is not in the table"
    for noise, found in expected.items():
        published = recipe.published_for(recipe.config(noise=noise))
        assert {(p.row, p.test, p.std, p.clean, p.pretrained) for p in published} == found, noise
        assert len(published) == len(found)
    assert len(recipe.published) == sum(map(len, expected.values()))
    assert all(p.source for p in recipe.published)
    for over in ({"model": "small_conv"}, {"dataset": "digits"}, {"noise": "pair:0.4"}):
        assert not recipe.published_for(recipe.config(**over))


A = ((0.1, 0.9, True, 5e-4), "reflect")  # rate, momentum, nesterov, weight decay; padding
B, R18, VGG = (((*of, False, decay), "zero") for *of, decay in ((0.1, 0.9, 5e-4), (0.4, 0.0, 1e-3), (0.6, 0.0, 5e-3)))
LATE, OF_120, HALF = ((0.9, 0.95), (80 / 120, 100 / 120), (0.5, 0.75))  # of the run, where the rate falls to a tenth
#: model, classes, batch, clean batch, clean rows (or folds), the above
SETTINGS = {
    "cifar10-a": ("wrn28_10", 10, 100, 100, 1000, A, LATE),
    "cifar100-a": ("wrn28_10", 100, 100, 100, 1000, A, LATE),
    "cifar10-a-resnet32": ("resnet32", 10, 100, 100, 1000, A, OF_120),
    "cifar100-b": ("wrn28_10", 100, 128, 256, 1000, B, OF_120),
    "cifar10-resnet18": ("resnet18", 10, 128, 256, "5 folds", R18, HALF),
    "cifar100-resnet18": ("resnet18", 100, 128, 256, "5 folds", R18, HALF),
    "cifar10-vgg16": ("vgg16_bn", 10, 128, 256, "5 folds", VGG, HALF),
    "cifar100-vgg16": ("vgg16_bn", 100, 128, 256, "5 folds", VGG, HALF),
    "cifar10n": ("resnet18", 10, 128, 128, 1000, B, (0.6,)),
    "cifar100n": ("resnet18", 100, 128, 128, 1000, B, (0.6,)),
    "noisyag-news": ("mlp", 4, 64, 100, 100, None, ()),
}
LENGTHS = {
    "cifar10-a": (None, 20_000),
    "cifar100-a": (None, 20_000),
    **dict.fromkeys(("cifar10-a-resnet32", "cifar100-b"), (120, None)),
    **dict.fromkeys(("cifar10-resnet18", "cifar100-resnet18"), (165, None)),
    **dict.fromkeys(("cifar10-vgg16", "cifar100-vgg16"), (300, None)),
    **dict.fromkeys(("cifar10n", "cifar100n"), (100, None)),
    "noisyag-news": (20, None),
}


@pytest.mark.parametrize("name", recipes.names())
def test_settings_are_those_of_the_works(name):
    model, classes, batch, meta_batch, clean, of_model, falls = SETTINGS[name]
    recipe = recipes.read(name)
    for method in recipe.methods:
        config = recipe.config(method)
        of_data, optim = config.data, config.optim
        assert (config.model, of_data.batch_size, of_data.meta_batch_size) == (model, batch, meta_batch)
        assert (config.epochs, config.max_steps) == LENGTHS[name]
        assert clean == (of_data.meta_count or f"{of_data.folds} folds")
        if of_model is None:
            continue
        (lr, momentum, nesterov, decay), padding = of_model
        assert (optim.name, optim.momentum, optim.nesterov, optim.weight_decay) == ("sgd", momentum, nesterov, decay)
        assert (of_data.augment, of_data.padding, of_data.pad_mode) == ("crop_flip", 4, padding)
        total = 60_000
        rates = {0: lr, total - 1: lr * 0.1 ** len(falls)}
        for k, share in enumerate(falls):
            step = round(share * total)
            rates |= {step - 1: lr * 0.1**k, step: lr * 0.1 ** (k + 1)}
        assert [lr_at(optim, step, total) for step in rates] == pytest.approx(list(rates.values()))
    with torch.device("meta"):
        models.build(model, num_classes=classes, input_shape=(256,) if model == "mlp" else (3, 32, 32))


def test_methods_go_as_the_works_have_them():
    def options(name, method):
        return recipes.read(name).config(method).options

    a, b = options("cifar10-a", "mwnet"), options("cifar10-a-resnet32", "mwnet")
    assert (a.hidden, a.normalise, a.optimizer, a.lr, a.momentum, a.weight_decay) == (
        100,
        "sum",
        "sgd",
        1e-3,
        0.9,
        5e-4,
    )
    assert (b.normalise, b.optimizer, b.lr, b.weight_decay) == ("n", "adam", 1e-3, 1e-4)
    of_b = options("cifar100-b", "data_parameters")
    assert (of_b.parameters, of_b.lr_instance, of_b.largest) == ("instance", 0.2, 20)
    assert (options("cifar10-a", "elr").weight, options("cifar100-a", "elr").weight) == (3, 7)
    config = recipes.read("cifar100-b").config("onehot")
    assert (config.data.mean, config.data.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    for name, rates in {"cifar10-resnet18": (50, 0.3), "cifar100-vgg16": (25, 0.1)}.items():
        recipe = recipes.read(name)
        labels = [recipe.config(method).labels for method in ("instance_labels", "class_labels")]
        assert tuple(one.label_lr for one in labels) == rates
        assert [one.target_prob for one in labels] == [0.9, 0.9]
    labels = recipes.read("cifar10-a").config("instance_labels").labels
    assert (labels.update, labels.target_prob, labels.entropy_weight) == ("exact", 0.5, "1-H/logC")
    labels = recipes.read("noisyag-news").config("instance_labels").labels
    assert (labels.update, labels.target_prob) == ("exact", 0.6)


@pytest.mark.parametrize("name", recipes.names())
def test_what_a_recipe_tells(name):
    recipe = recipes.read(name)
    assert recipe.title
    assert recipe.source
    assert "\n" not in recipe.notes
    assert recipe.seeds == 3
    assert "onehot" in recipe.methods
    assert recipe.config().method == "instance_labels"
    for decided in SILENT if "2009.09496" in recipe.source else ():
        assert f"{decided}: " in recipe.notes
    assert max(map(len, re.split(r"(?<=[.:;,]) ", recipe.notes))) < 150


#: what the paper leaves open in all of its settings, and what the notes say of it
SILENT = ("Start of a label", "Look-ahead")


def stand_in(name, classes, folder):
    """Few random samples of the shape that a recipe is about, and its file of labels."""
    rng = np.random.default_rng(0)
    y = np.arange(4 * classes if classes > 10 else 80) % classes

    def x(count):
        images = rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
        return rng.normal(size=(count, 256)).astype(np.float32) if name == "noisyag-news" else images

    given = np.where(rng.random(len(y)) < 0.3, (y + 1) % classes, y)
    noise = recipes.read(name).config().noise
    if noise.startswith("file:"):
        _, path, key = noise.split(":")
        (folder / "data").mkdir()
        if path.endswith(".pt"):
            torch.save({key: given, "clean_label": y}, folder / path)
        else:
            np.savez(folder / path, **{key: given, "y_true": y})
    arrays = {"x_train": x(len(y)), "y_train": given, "y_true": y, "x_test": x(classes), "y_test": np.arange(classes)}
    if name != "noisyag-news":
        arrays["y_train"] = y
        del arrays["y_true"]
    np.savez(folder / "a.npz", **arrays)
    return "npz:a.npz"


class Tiny(nn.Module):
    """Of a few numbers of each sample."""

    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(48, classes)

    def forward(self, x):
        return self.head(x.flatten(1)[:, :48])


#: between them, all that recipes differ in
QUICK = ("cifar10-a", "cifar100-b", "cifar10-resnet18", "cifar100n", "noisyag-news")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in recipes.names()]
)
def test_each_method_trains_by_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, classes = recipes.read(name), SETTINGS[name][1]
    few = {"batch_size": 16, "meta_batch_size": 8}
    if recipe.config().data.meta_count is not None:
        few["meta_count"] = 2 * classes
    data = stand_in(name, classes, tmp_path)
    for method in recipe.methods:
        torch.manual_seed(0)
        config = recipe.config(method, dataset=data, epochs=2, threads=1, data=few)
        stage = prepare(config, model=Tiny(classes)).stage(method)
        before = [p.clone() for p in stage.model.parameters()]
        stage.take_step()
        stage.take_step()
        stage.check()
        assert stage.finite()
        assert any(not torch.equal(p, q) for p, q in zip(before, stage.model.parameters(), strict=True))


@pytest.mark.parametrize("name", recipes.names())
def test_all_other_methods_can_be_asked_for(name):
    recipe = recipes.read(name)
    for method in METHODS:
        assert recipe.config(method).method == method


def test_the_page_lists_them_as_they_are():
    page = recipe_list.PAGE.read_text()
    assert page == recipe_list.with_list(page), "python -m tests.support.recipe_list"
    for recipe in map(recipes.read, recipes.names()):
        assert all(str(row.test) in page for row in recipe.published)


def test_the_recipe_of_the_page_is_one(tmp_path):
    (block,) = (b for b in guides.blocks(recipe_list.PAGE) if b.language == "toml")
    (tmp_path / "my.toml").write_text(block.text)
    recipe = recipes.read(tmp_path / "my.toml")
    config = recipe.config("elr")
    assert (config.optim.lr, config.options.weight) == (0.02, 7)
    assert not recipe.published_for(config)
    assert [p.test for p in recipe.published_for(recipe.config("elr", noise="pair:0.4"))] == [71.3]
