"""A name that no option has is answered with the option that was meant, in a file as on the command line."""

import pytest

from fastmeta.data import InputError
from fastmeta.training import TrainConfig
from fastmeta.training.option_names import names_of, near

NAMES = list(names_of(TrainConfig))
IN_TABLES = [name for name in NAMES if "." in name]


def answer(values):
    with pytest.raises(InputError) as error:
        TrainConfig.from_mapping(values)
    return str(error.value)


@pytest.mark.parametrize("name", IN_TABLES)
def test_an_option_of_a_table_that_stands_at_the_top(name):
    own = name.rpartition(".")[2]
    assert answer({own: 1}) == f"config: unknown key '{own}'; did you mean {name}?"
    flags = [f"--{n.replace('_', '-')}" for n in NAMES]
    assert near(f"--{own}", flags) == [f"--{name.replace('_', '-')}"]


@pytest.mark.parametrize("name", NAMES)
def test_an_option_in_a_table_that_has_none_of_its_name(name):
    own = name.rpartition(".")[2]
    for table in ("optim", "labels", "data"):
        words = set(own.split("_"))
        has_its_words = any(n.startswith(f"{table}.") and words <= set(n[len(table) + 1 :].split("_")) for n in NAMES)
        if not has_its_words:
            assert answer({table: {own: 1}}).endswith(f"did you mean {name}?")


@pytest.mark.parametrize(
    ("values", "meant"),
    [
        ({"optimizer": {"lr": 0.1}}, "optim"),
        ({"label": {"dtype": "float32"}}, "labels"),
        ({"labels": {"lr": 1.0}}, "labels.label_lr"),
        ({"batch-size": 3}, "data.batch_size"),
        ({"optim": {"learning_rate": 1}}, None),
        ({"method": {"name": "onehot", "epochs": 3}}, "epochs"),
        ({"method": {"name": "onehot", "lr": 3}}, "optim.lr"),
        ({"epoch": 3}, "epochs"),
        ({"zzz": 3}, None),
        ({"zzz": {"a": 3}}, None),
    ],
)
def test_other_near_misses(values, meant):
    text = answer(values)
    assert text.endswith(f"did you mean {meant}?") if meant else "; known are " in text


def test_two_tables_may_have_an_option_of_one_name():
    assert near("--lr", ["--optim.lr", "--method.lr", "--seed"]) == ["--optim.lr", "--method.lr"]
    assert near("--method.keeps", ["--method", "--method.keep", "--seed"]) == ["--method.keep"]
    assert near("--noise.rate", ["--noise", "--seed"]) == ["--noise"]
