"""Recipe files: what is read, what a method gets, which published numbers are shown, what is refused."""

import os
from pathlib import Path

import pytest

from fastmeta import recipes
from fastmeta.cli.train import parse
from fastmeta.data import InputError
from fastmeta.training import TrainConfig

TEXT = """
noise = "uniform:0.40"
epochs = 40
dataset = "cifar10"
optim = { lr = 0.1, nesterov = true }
[recipe]
title = "T"
source = "S"
notes = "N"
methods = ["onehot", "coteaching"]
seeds = 2
[[recipe.published]]
row = "onehot"
test = 68.1
std = 0.2
source = "table 6"
[[recipe.published]]
row = "onehot"
test = 53.1
clean = true
source = "table 6"
when = { noise = "uniform:0.6" }
[methods.coteaching]
optim = { name = "adamw", lr = 0.001, nesterov = false }
[methods.coteaching.method]
forget_rate = 0.3
"""


@pytest.fixture
def written(tmp_path):
    def write(text=TEXT, name="mine.toml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_what_stands_in_a_recipe(written):
    recipe = recipes.read(written())
    assert (recipe.name, recipe.title, recipe.source, recipe.notes, recipe.seeds) == ("mine", "T", "S", "N", 2)
    assert recipe.methods == ("onehot", "coteaching")
    assert recipe.published == (
        recipes.Published("onehot", 68.1, 0.2, False, False, "table 6", {}),
        recipes.Published("onehot", 53.1, None, True, False, "table 6", {"noise": "uniform:0.6"}),
    )
    assert not recipe.plain


def test_each_method_has_its_own_over_the_config(written):
    recipe = recipes.read(written())
    onehot, coteaching = map(recipe.config, recipe.methods)
    assert (onehot.method, onehot.epochs, onehot.optim.lr, onehot.optim.nesterov) == ("onehot", 40, 0.1, True)
    assert (coteaching.method, coteaching.optim.name, coteaching.optim.lr) == ("coteaching", "adamw", 0.001)
    assert coteaching.options.forget_rate == 0.3
    assert coteaching.noise == onehot.noise == "uniform:0.40"
    assert recipe.config().method == "instance_labels"


def test_values_of_the_caller_stand_above_all(written):
    recipe = recipes.read(written())
    config = recipe.config("coteaching", epochs=2, options={"ramp_epochs": 1}, **{"optim.lr": 0.5, "data.padding": 2})
    assert (config.epochs, config.optim.lr, config.optim.name, config.data.padding) == (2, 0.5, "adamw", 2)
    assert (config.options.ramp_epochs, config.options.forget_rate) == (1, 0.3)
    assert recipe.config("coteaching", **{"method.ramp_epochs": 1}).options == config.options
    assert recipe.config("onehot", epochs=None).epochs is None
    assert recipe.tables["epochs"] == 40
    with pytest.raises(InputError, match=r"^mine: unknown key 'optim.l'; did you mean"):
        recipe.config("onehot", optim={"l": 1.0})


def test_published_numbers_are_those_of_the_setting(written):
    recipe = recipes.read(written())

    def shown(**over):
        return [row.test for row in recipe.published_for(recipe.config("onehot", **over))]

    assert shown() == [68.1]
    assert shown(noise="uniform:0.4") == shown(epochs=3) == shown(dataset="torchvision:CIFAR10") == [68.1]
    assert shown(noise="uniform:0.6") == [53.1]
    assert shown(noise="uniform:0.5") == shown(noise="pair:0.4") == shown(dataset="cifar100") == []


def test_a_recipe_without_noise_has_no_number_for_noise(written):
    recipe = recipes.read(written(TEXT.replace('noise = "uniform:0.40"', "")))
    tests = [
        [row.test for row in recipe.published_for(recipe.config("onehot", noise=n))] for n in (None, "none", "pair:0.4")
    ]
    assert tests == [[68.1], [68.1], []]


def test_where_files_lie_does_not_matter(written):
    recipe = recipes.read(written(TEXT.replace("uniform:0.40", "file:data/human.pt:worse_label")))

    def shown(noise):
        return [row.test for row in recipe.published_for(recipe.config("onehot", noise=noise))]

    assert shown("file:human.pt:worse_label") == shown("file:/a/b c/human.pt:worse_label") == [68.1]
    assert shown("file:human.pt:aggre_label") == shown("file:other.pt:worse_label") == []


def test_a_config_file_is_a_recipe(written):
    path = written('epochs = 3\n[method]\nname = "elr"\nbeta = 0.9\n', "plain.toml")
    recipe = recipes.read(path)
    assert (recipe.title, recipe.methods, recipe.published, recipe.plain) == ("plain", ("elr",), (), True)
    assert recipe.config() == TrainConfig.read(path)
    assert recipe.config("onehot") == TrainConfig(method="onehot", epochs=3)


def test_a_config_of_a_run_is_a_recipe(written):
    path = written(TrainConfig(method="mwnet", options={"normalise": "sum"}, epochs=3, out="a").to_toml(), "run.toml")
    assert recipes.read(path).config() == TrainConfig.read(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title", "titel", "unknown key 'recipe.titel'; did you mean title?"),
        ("std = ", "sd = ", "unknown key 'recipe.published.sd'; did you mean std?"),
        ("test = 68.1\n", "", "recipe.published must have test, got row, std, source"),
        ("test = 68.1", "test = 681", r"recipe.published.test must be in .0, 100., got 681"),
        ("test = 68.1", 'test = "68"', "recipe.published.test must be a number, got '68'"),
        ("seeds = 2", "seeds = 0", "recipe.seeds must be"),
        ("when = { noise", "when = { noize", "a key of recipe.published.when must be one of .* did you mean noise"),
        ('"uniform:0.6"', "0.6", "recipe.published.when.noise must be a text in quotes, got 0.6"),
        ("epochs = 40", "epoch = 40", "unknown key 'epoch'; did you mean epochs"),
        ("lr = 0.1", "Lr = -0.1", "unknown key 'optim.Lr'"),
        ("forget_rate = 0.3", "forget = 0.3", r"\[methods.coteaching\]: unknown key 'method.forget'"),
        ('["onehot", "coteaching"]', '["onehott"]', "method must be one of .* did you mean onehot"),
        ("[methods.coteaching]", "[methods.coteachin]", "must be one of .* did you mean coteaching"),
        ("[methods.coteaching.method]", "[methods.coteaching.methods]", r"coteaching\]: unknown key 'methods'"),
        ("[methods.coteaching.method]", '[methods.elr]\nmethod = 1\n[methods.sop.method]', "elr.method must be"),
        ("[[recipe.published]]", "[recipe.published]", "recipe.published must be tables|not valid TOML"),
    ],
)  # fmt: skip
def test_mistakes_are_told_by_name(old, new, message, written):
    path = written(TEXT.replace(old, new))
    with pytest.raises(InputError, match=message) as caught:
        recipes.read(path)
    assert str(caught.value).startswith(f"{path} " if "not valid TOML" in str(caught.value) else f"{path}: ")
    assert "\n" not in str(caught.value)


def test_code_that_a_recipe_names_is_not_imported(written, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("open('ran', 'w')\nfrom fastmeta.methods import METHODS\nM = METHODS['onehot']\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = TEXT.replace('["onehot", "coteaching"]', '["evil:M"]').replace("epochs = 40", 'model = "evil:M"')
    recipe = recipes.read(written(text))
    (named,) = recipe.methods
    config = recipe.config(named)
    assert config.names_code() == ("model", "method")
    with pytest.raises(InputError, match="trust-code"):
        config.method_class()
    assert not Path("ran").exists()
    assert type(recipe.config("onehot", model="other:net").model) is str
    assert recipe.config("evil:M").method_class().__name__ == "OneHot"  # the caller's own word


def test_names_and_near_misses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "cifar10-a" in recipes.names()
    folder = Path(recipes.__file__).parent
    assert recipes.names() == tuple(sorted(p.removesuffix(".toml") for p in os.listdir(folder) if p.endswith(".toml")))
    for wrong in ("cifar10a", "CIFAR10-A", "cifar10-a.toml"):
        with pytest.raises(
            InputError, match=f"no config file and no recipe has the name '{wrong}'; did you mean .*cifar10-a"
        ):
            recipes.read(wrong)
    with pytest.raises(InputError, match=r"the name 'qq'; shipped are .*cifar10-a"):
        recipes.read("qq")
    for wrong in ("none.toml", "a/cifar10-a", "a" * 5000, "/", "cifar10-a\0"):
        with pytest.raises(InputError):
            recipes.read(wrong)
    Path("cifar10-a").mkdir()
    assert recipes.read("cifar10-a").title.startswith("CIFAR-10")
    Path("cifar10-a").rmdir()
    Path("cifar10-a").write_text("epochs = 3")
    assert recipes.read("cifar10-a").plain


def test_train_takes_a_recipe_by_its_name(written):
    run = parse(["--config", "cifar10-a"]).run
    assert run == recipes.read("cifar10-a").config()
    assert parse(["--config=cifar10-a", "--method", "mwnet"]).run == recipes.read("cifar10-a").config("mwnet")
    assert parse(["--config", "cifar10-a", "--method", "focal", "--epochs", "2"]).run.epochs == 2
    path = str(written())
    assert parse(["--config", path, "--method", "coteaching", "--optim.lr", "0.2"]).run.optim.lr == 0.2
    with pytest.raises(
        InputError, match=r"^no config file and no recipe has the name 'cifar10-aa'; did you mean cifar10-a"
    ):
        parse(["--config", "cifar10-aa"])
