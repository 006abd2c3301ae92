"""What a model gets of x: dicts as keyword arguments, as Hugging Face models want them, tuples as positional ones."""

import copy
from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import fastmeta
from fastmeta import reference
from fastmeta.bench import step_run
from fastmeta.bench.step_problem import StepConfig
from fastmeta.functional.call import call_model, pick_logits, plain

C, N, M, LENGTH, WORDS = 3, 8, 6, 5, 11


@dataclass
class Output:
    """As Hugging Face's models return it."""

    logits: torch.Tensor
    loss: torch.Tensor | None = None


class Classifier(nn.Module):
    """With the arguments and the output of a Hugging Face sequence classifier."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(WORDS, 6)
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, C)

    def forward(self, input_ids=None, attention_mask=None, labels=None, return_dict=True):
        h = self.embed(input_ids)
        h = h + self.attend(h, h, h, key_padding_mask=attention_mask == 0, need_weights=False)[0]
        weight = attention_mask.unsqueeze(-1).to(h.dtype)
        return Output(self.head(torch.tanh((h * weight).sum(1) / weight.sum(1))))


class OfTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, C), nn.Linear(2, C)

    def forward(self, image, table, scale=1.0):
        return torch.tanh(self.a(image)) + scale * self.b(table)


class OfOneDict(OfTwo):
    def forward(self, batch):
        return super().forward(batch["image"], batch["table"])


class OfOnePair(OfTwo):
    def forward(self, pair):
        return super().forward(*pair)


class BatchEncoding(UserDict):
    """As a tokenizer gives it: a Mapping that is no dict."""


def tokens(count):
    mask = torch.ones(count, LENGTH, dtype=torch.int64)
    mask[::2, 3:] = 0
    return {"input_ids": torch.randint(WORDS, (count, LENGTH)), "attention_mask": mask}


def parts(count):
    return {"image": torch.randn(count, 4, dtype=torch.float64), "table": torch.randn(count, 2, dtype=torch.float64)}


def hugging(form):
    return Classifier().double(), form(tokens(N)), form(tokens(M))


def pairs(model, form):
    return model.double(), form(parts(N)), form(parts(M))


CASES = {
    "keywords": lambda: hugging(dict),
    "an encoding": lambda: hugging(BatchEncoding),
    "keywords in another order": lambda: pairs(OfTwo(), lambda x: {"table": x["table"], "image": x["image"]}),
    "positions": lambda: pairs(OfTwo(), lambda x: tuple(x.values())),
    "some by position": lambda: pairs(OfTwo(), lambda x: (*x.values(), 0.5)),
    "one dict": lambda: pairs(OfOneDict(), dict),
    "one dict of other kind": lambda: pairs(OfOneDict(), BatchEncoding),
    "one pair": lambda: pairs(OfOnePair(), lambda x: tuple(x.values())),
    "one list": lambda: pairs(OfOnePair(), lambda x: list(x.values())),
}


#: a plain number may be another in the next batch; what is no dict hides its tensors from torch
UNTRACED = ("some by position", "one dict of other kind")


@pytest.mark.filterwarnings("ignore:compile='trace'. the step runs eagerly")
@pytest.mark.parametrize("compile", ["off", "trace"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_the_references(case, compile):
    torch.manual_seed(0)
    model, x, x_meta = CASES[case]()
    targets, y_meta, index = torch.randint(C, (N,)), torch.randint(C, (M,)), torch.randperm(N)
    labels = fastmeta.InstanceLabels(targets, C, dtype=torch.float64)
    twin, rows = copy.deepcopy(model), labels.label_logits[index].clone()
    step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=0.1), label_lr=5.0, compile=compile)
    sgd = reference.SGDState(lr=0.1)
    for _ in range(2):
        step((x, index), (x_meta, y_meta))
        rows, _ = reference.meta_step(
            twin, rows, reference.instance_probs, x, x_meta, y_meta, label_lr=5.0, optimizer=sgd
        )
    torch.testing.assert_close(labels.label_logits[index], rows, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    assert bool(step.eager_because) == (compile == "trace" and case in UNTRACED)


def test_a_mapping_is_checked_and_cut_like_a_dict():
    torch.manual_seed(0)
    model, x, x_meta = CASES["an encoding"]()
    model, index, y = model.float(), torch.arange(N), torch.arange(N) % C
    labels = fastmeta.InstanceLabels(y, C)
    assert fastmeta.check(model, labels, (x, index), (x_meta, y[:M]), 0.1, timing=False).ok
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = fastmeta.MetaStep(model, labels, optimizer, micro_batch=4, per_row=True)
    assert bool(step((x, index), (x_meta, y[:M])).finite)
    assert fastmeta.per_sample(OfTwo(), (torch.randn(N, 4), torch.randn(N, 2)), y).norm.shape == (N,)


def test_what_reaches_forward():
    class Spy(nn.Module):
        def forward(self, *args, **kwargs):
            return args, kwargs

    class Named(nn.Module):
        def forward(self, x, scale=1):
            return x, scale

    point = namedtuple("point", "a b")(1, 2)
    spy, named = Spy(), Named()
    assert call_model(spy, {"a": 1}) == ((), {"a": 1})
    assert call_model(spy, ({"a": 1},)) == (({"a": 1},), {})  # the whole dict, where its keys would fit
    assert call_model(spy, (1, 2)) == ((1, 2), {})
    assert call_model(spy, [1, 2]) == (([1, 2],), {})
    assert call_model(named, point) == (point, 1)
    assert call_model(named, {1: 2}) == ({1: 2}, 1)
    assert call_model(named, {"x": 3, "scale": 2}) == (3, 2)
    assert call_model(torch.compile(named, backend="eager"), {"image": 3}) == ({"image": 3}, 1)
    named.forward = lambda pixels: pixels  # of this module alone
    assert call_model(named, {"pixels": 4}) == 4
    assert plain(named, BatchEncoding(pixels=4)) == {"pixels": 4}
    assert isinstance(plain(named, BatchEncoding(x=4)), BatchEncoding)  # which goes as it is


@pytest.mark.parametrize(
    ("x", "told"),
    [
        ({"pixel_values": torch.zeros(2, 4)}, r"x has the keys pixel_values, which do not fit the arguments of OfTwo"),
        ((1, 2, 3, 4), r"x is a tuple of 4, which do not fit the arguments of OfTwo.forward\(image, table, scale\)"),
    ],
)
def test_a_misfit_names_the_way_out(x, told):
    with pytest.raises(TypeError, match=told) as error:
        call_model(OfTwo(), x)
    assert "keyword arguments" in str(error.value) or "({...},)" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_dict_that_a_forward_of_several_takes_for_one_of_them():
    """As Hugging Face's models do, all of whose arguments have defaults."""
    model = Classifier()
    labels = fastmeta.InstanceLabels(torch.zeros(2, dtype=torch.int64), C)
    step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=0.1))
    x = {"ids": torch.zeros(2, LENGTH, dtype=torch.int64)}
    with pytest.raises(TypeError, match=r"x has the keys ids, .* name them so, .*as the one argument: "):
        step((x, torch.arange(2)), (tokens(2), torch.zeros(2, dtype=torch.int64)))
    one = OfOneDict()
    with pytest.raises(KeyError, match="image"):  # its own error says more than we could
        call_model(one, {"picture": 1})


def test_logits_of_outputs():
    z = torch.zeros(2, 3)
    assert pick_logits(z) is pick_logits(Output(z)) is pick_logits({"loss": None, "logits": z}) is z
    for output in ((z,), {"scores": z}, None):
        with pytest.raises(TypeError, match="pass logits_of="):
            pick_logits(output)


def encoded(batch):
    return tokens(batch)


def image_and_table(batch):
    return tuple(x.float() for x in parts(batch).values())


def classifier(num_classes):
    return Classifier()


def of_two(num_classes):
    return OfTwo()


@pytest.mark.parametrize(("model", "inputs"), [("classifier", "encoded"), ("of_two", "image_and_table")])
def test_the_benchmark_gives_them_to_every_variant(model, inputs):
    config = StepConfig(
        model=f"{__name__}:{model}",
        inputs=f"{__name__}:{inputs}",
        batch=4,
        meta_batch=6,
        classes=C,
        samples=10,
        rounds=1,
        memory=False,
        variants=("sgd", "fastmeta", "reference", "autograd"),
    )
    content = step_run.run(config, lambda text: None)
    assert content["failures"] == []
    assert all(row["skipped"] is None for row in content["rows"])
