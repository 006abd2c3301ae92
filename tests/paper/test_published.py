"""The paper's numbers in one file; those that recipes repeat are the same."""

import re

import pytest

from fastmeta import recipes
from fastmeta.data import InputError
from fastmeta.paper import published
from fastmeta.paper.published import PublishedTable, _number, settings


@pytest.mark.parametrize(
    ("table", "row", "column", "text"),
    [
        ("table1", "onehot", "CIFAR-100 ResNet18", "77.1 ± 0.3"),
        ("table1", "instance_labels", "CIFAR-10 VGG16", "94.3 ± 0.1"),
        ("table2", "label_smoothing", "CIFAR-100 VGG16", "74.6 ± 0.1"),
        ("table3", "static", "instance labels", "78.4 ± 0.3"),
        ("table4", "onehot_teacher", "best temperature", "45.2 ± 0.7"),
        ("table5", "from_resnet18", "VGG16", "76.9 ± 0.3"),
        ("table6", "coteaching", "CIFAR-100 40%", "46.2 ± 0.15"),
        ("table6", "mwnet", "CIFAR-10 60%", "84.1 ± 0.3"),
        ("table7", "data_parameters", "CIFAR-100 80%", "35.8 ± 1.0"),
        ("table8", "confidence_penalty", "CIFAR-10 ResNet18", "95.2 ± 0.1"),
    ],
)
def test_numbers_of_each_table(table, row, column, text):
    number = published(table).number(row, column)
    mean, _, std = text.partition(" ± ")
    assert (number.mean, number.std, number.text) == (float(mean), float(std), text)


def test_what_is_not_published_is_no_number():
    assert published("table7").number("l2rw", "CIFAR-100 20%") is None
    assert published("table7").number("onehot", "CIFAR-100 80%").std is None
    with pytest.raises(LookupError):
        published("table10")
    with pytest.raises(InputError, match="no number"):
        _number("68,1")


def test_rows_that_use_clean_data_are_marked():
    clean = {name for name, row in published("table6").rows.items() if row.clean}
    assert clean == {"mentornet", "l2rw", "mwnet", "instance_labels"}
    assert not any(row.clean for table in ("table1", "table2", "table5") for row in published(table).rows.values())


def test_settings_are_those_of_table_9():
    assert settings()["VGG16"] == {"lr": 0.6, "weight_decay": 5e-3, "epochs": 300}
    assert settings()["grids"]["label_lr_instance"] == [5, 10, 25, 50, 75, 100]


#: a recipe's row where the paper's own has another name
ROWS = {
    "MentorNet, mentor learned on clean data": {"6": "mentornet", "7": "mentornet_dd"},
    "mentornet": {"7": "mentornet_pd"},
}
NETWORKS = {"resnet18": "ResNet18", "vgg16_bn": "VGG16"}


def test_recipes_repeat_these_numbers():
    checked = 0
    for name in recipes.names():
        recipe = recipes.read(name)
        for row in recipe.published:
            found = re.fullmatch(r"arXiv 2009\.09496, table (\d)", row.source)
            if not found:
                continue
            number = found[1]
            here = {"noise": "none", **recipe.tables, **row.when}
            data = here["dataset"].upper().replace("CIFAR", "CIFAR-")
            rate = here["noise"].partition(":")[2]
            column = f"{data} {float(rate):.0%}" if rate else f"{data} {NETWORKS[here['model']]}"
            table: PublishedTable = published(f"table{number}")
            own = table.rows[ROWS.get(row.row, {}).get(number, row.row)]
            assert (own.numbers[column].mean, own.numbers[column].std, own.clean) == (row.test, row.std, row.clean)
            checked += 1
    assert checked >= 50
