"""Which runs a comparison has. Nothing is trained."""

import pytest

from fastmeta import recipes
from fastmeta.comparison.planned_runs import make_plan
from fastmeta.data import InputError
from fastmeta.methods import METHODS

TEXT = """
dataset = "digits"
noise = "uniform:0.4"
epochs = 2
[recipe]
methods = ["instance_labels", "l2rw"]
seeds = 2
[methods.instance_labels.labels]
target_prob = 0.5
[methods.coteaching.method]
forget_rate = 0.3
[methods.coteaching.optim]
lr = 0.2
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TEXT)
    return recipes.read(path)


def named(plan):
    return {setting.name: setting for setting in plan.settings}


def test_plain_training_and_the_softened_start_always_stand_beside(recipe):
    plan = make_plan(recipe, methods=["elr"])
    assert [(s.kind, s.method) for s in plan.settings] == [
        ("plain", "onehot"),
        ("softened", "label_smoothing"),
        ("method", "elr"),
    ]
    plain, softened, elr = (s.config for s in plan.settings)
    assert (plain.baselines, plain.finetune_steps) == ("union,clean", 100)
    assert softened.options.target_prob == 0.5  # as the recipe says
    assert (elr.baselines, elr.finetune_steps, elr.epochs) == ("none", 0, 2)
    assert plan.seeds == (0, 1)
    # and a method that is one of them is not trained twice
    assert [s.name for s in make_plan(recipe, methods=["onehot"]).settings] == ["plain", "softened"]


def test_a_grid_is_for_the_methods_that_have_the_option(recipe):
    grid = ["labels.target_prob=0.3,0.6", "method.gamma=1,2", "method.beta=0.5"]
    plan = make_plan(recipe, methods=["instance_labels", "focal", "elr"], grid=grid)
    assert [(s.name, s.tried) for s in plan.settings] == [
        ("plain", 1),
        ("softened-target_prob=0.3", 2),
        ("softened-target_prob=0.6", 2),
        ("instance_labels-target_prob=0.3", 2),
        ("instance_labels-target_prob=0.6", 2),
        ("focal-gamma=1", 2),
        ("focal-gamma=2", 2),
        ("elr-beta=0.5", 1),
    ]
    settings = named(plan)
    assert not settings["softened-target_prob=0.3"].soft_by_default
    assert settings["softened-target_prob=0.3"].config.options.target_prob == 0.3
    assert settings["instance_labels-target_prob=0.6"].config.labels.target_prob == 0.6
    assert settings["focal-gamma=2"].config.options.gamma == 2.0
    rates = make_plan(recipe, methods=["instance_labels"], grid=["labels.label_lr=search,300,auto"])
    assert rates.grid["labels.label_lr"] == ("search", 300.0, None)
    both = make_plan(recipe, methods=["instance_labels"], grid={"labels.target_prob": [None, 0.5, 0.6]})
    assert [s.name for s in both.settings] == [
        "plain",
        "softened-target_prob=auto",  # 0.5 by the recipe, and not once more
        "softened-target_prob=0.6",
        "instance_labels-target_prob=auto",
        "instance_labels-target_prob=0.5",
        "instance_labels-target_prob=0.6",
    ]
    product = make_plan(recipe, methods=["elr"], grid={"optim.lr": [0.1, 0.2], "method.beta": [0.5, 0.7]})
    assert [s.tried for s in product.settings] == [2, 2, 2, 2, 4, 4, 4, 4]


def test_what_is_laid_over_a_method_is_what_it_has(recipe):
    over = {"labels.update": "exact", "approx": "every:2", "optim.lr": 0.3, "seed": 7}
    settings = named(make_plan(recipe, methods=["instance_labels", "l2rw", "coteaching"], over=over))
    assert settings["instance_labels"].config.labels.update == "exact"
    assert settings["instance_labels"].config.approx == "every:2"
    assert settings["coteaching"].config.labels.update is None
    # a flag wins over what the recipe says of the method alone
    assert settings["coteaching"].config.optim.lr == 0.3
    assert settings["coteaching"].config.options.forget_rate == 0.3
    assert make_plan(recipe, over=over).seeds == (7, 8)


@pytest.mark.parametrize("steps", [None, 0, 7])
def test_fine_tuning_is_laid_over_too(steps, recipe):
    """Its rate is that of plain training, which always has such a row, and of others where steps are given."""
    over = {"finetune_lr": 0.01} if steps is None else {"finetune_lr": 0.01, "finetune_steps": steps}
    settings = named(make_plan(recipe, methods=["elr"], over=over))
    plain, elr = settings["plain"].config, settings["elr"].config
    assert (plain.finetune_steps, plain.finetune_lr) == (steps or 100, 0.01)
    assert (elr.finetune_steps, elr.finetune_lr) == ((7, 0.01) if steps else (0, None))


def test_a_config_file_of_one_method_does_for_all(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('epochs = 3\ncompile = "trace"\n[labels]\nupdate = "exact"\nwarmup_epochs = 1\n[optim]\nlr = 0.2')
    settings = named(make_plan(recipes.read(path), methods=[m for m in METHODS if m != "onehot"]))
    assert not [s.refused for s in settings.values() if s.refused]
    assert settings["plain"].config.compile == "off"
    assert settings["instance_labels"].config.compile == "trace"
    assert {s.config.optim.lr for s in settings.values()} == {0.2}


def test_all_methods_are_all_that_need_no_folder_of_ones_own(recipe):
    assert set(make_plan(recipe, methods=["all"]).methods) == METHODS.keys() - {"replay"}


def test_runs_go_seed_by_seed_and_teachers_first(recipe, tmp_path):
    plan = make_plan(recipe, methods=["distill", "instance_labels"], seeds=2, new_splits=True)
    runs = list(plan.runs(tmp_path))
    assert [run.name for run in runs][-2:] == ["instance_labels/seed1", "distill/seed1"]
    assert runs[-1].config.options.teacher == str(tmp_path / "instance_labels" / "seed1")
    assert [run.config.data.split_seed for run in runs] == [0] * 4 + [1] * 4
    alone = named(make_plan(recipe, methods=["distill"]))["distill"]
    assert alone.config is None
    assert "needs a finished run to learn from; add instance_labels" in alone.refused


def test_what_one_method_refuses_is_its_own(recipe):
    plan = make_plan(recipe, methods=["focal", "elr"], grid={"method.gamma": [-1.0, 2.0]})
    refused = [(s.name, s.refused) for s in plan.settings if s.refused]
    assert [name for name, _ in refused] == ["focal-gamma=-1"]
    assert "method.gamma must be" in refused[0][1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["erl"]}, "methods must be one of .*, got 'erl'; did you mean elr"),
        ({"methods": ["elr", "elr"]}, "methods has elr twice"),
        ({"methods": []}, "methods is empty"),
        ({"methods": ["nowhere.such:Method"]}, "methods: "),
        ({"seeds": 0}, "seeds must be a whole number from 1 to 1,000, got 0"),
        ({"grid": ["optim.lr"]}, "grid must look like option=value,value, got 'optim.lr'"),
        ({"grid": ["lr=1"]}, r"unknown option 'lr'; did you mean optim\.lr"),
        ({"grid": ["optim.lr=a"]}, r"optim\.lr must be a number, got 'a'"),
        ({"grid": ["optim.lr=0.1,"]}, r"optim\.lr has an empty value"),
        ({"grid": ["optim.lr=0.1,0.10"]}, r"optim\.lr has a value twice"),
        ({"grid": ["optim.lr=0.1", "optim.lr=0.2"]}, r"names optim\.lr twice"),
        ({"grid": {"optim.lr": 0.1}}, r"optim\.lr must have a list of values, got 0\.1"),
        ({"grid": ["optim.milestones=0.1"]}, "from Python"),
        ({"grid": ["noise=uniform:0.2,uniform:0.4"]}, "noise says what is compared"),
        ({"grid": ["data.meta_count=10,20"]}, r"data\.meta_count says what is compared"),
        ({"grid": ["method.bta=1"], "methods": ["elr"]}, r"option 'method.bta'; did you mean method\.beta"),
        (
            {"grid": ["labels.label_lr=1"], "methods": ["elr"]},
            "no method of this comparison has",
        ),
        ({"over": {"labels.label_lr": 1.0}, "methods": ["elr"]}, r"no method of this comparison has the option labels"),
        ({"over": {"method.beta": 1.0}}, "is about one method"),
        ({"over": {"baselines": "all"}}, "baselines is decided by the comparison"),
        ({"grid": ["model=mlp,resnet20"]}, "model says what is compared"),
        ({"over": {"lr": 0.1}}, r"unknown option 'lr'; did you mean optim\.lr"),
        ({"over": {"optim": {"lr": 0.1}}}, "unknown option 'optim'"),
        ({"over": {"data.split_seed": 3}, "new_splits": True}, "leave one out"),
        ({"over": {"epochs": 0}}, "epochs must be at least 1, got 0"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(options, message, recipe):
    with pytest.raises(InputError, match=message) as error:
        make_plan(recipe, **options)
    assert "\n" not in str(error.value)
