"""Models of Hugging Face's transformers with random weights: batches are dicts, outputs are theirs, steps exact."""

import copy

import pytest
import torch

import fastmeta
from fastmeta import reference
from fastmeta.training import OptimConfig

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

C, N, M, LENGTH, WORDS = 3, 8, 6, 7, 50
F64 = torch.float64
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert(**options):
    config = transformers.BertConfig(vocab_size=WORDS, num_labels=C, **SMALL, **(NO_DROPOUT | options))
    return transformers.BertForSequenceClassification(config)


def deberta():
    config = transformers.DebertaV2Config(vocab_size=WORDS, num_labels=C, **SMALL, **NO_DROPOUT)
    return transformers.DebertaV2ForSequenceClassification(config)


def vit():
    config = transformers.ViTConfig(image_size=16, patch_size=8, num_labels=C, **SMALL, **NO_DROPOUT)
    return transformers.ViTForImageClassification(config)


def encoding(count, shortest=4):
    """As a tokenizer gives it."""
    lengths = torch.randint(shortest, LENGTH + 1, (count, 1))
    mask = (torch.arange(LENGTH) < lengths).long()
    return transformers.BatchEncoding({"input_ids": mask * torch.randint(1, WORDS, mask.shape), "attention_mask": mask})


def pixels(count):
    return {"pixel_values": torch.randn(count, 3, 16, 16, dtype=F64)}


class Case:
    def __init__(self, model, batch, compile="off"):
        torch.manual_seed(0)
        self.model, self.index = model().double(), torch.randperm(N)
        self.train, self.meta = batch(N), batch(M)
        self.targets, self.y_meta = torch.randint(C, (N,)), torch.randint(C, (M,))
        self.labels = fastmeta.InstanceLabels(self.targets, C, dtype=F64)
        self.twin, self.rows = copy.deepcopy(self.model), self.labels.label_logits[self.index].clone()
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.step = fastmeta.MetaStep(self.model, self.labels, optimizer, label_lr=5.0, compile=compile)

    def steps(self):
        self.step((self.train, self.index), (self.meta, self.y_meta))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the other has no second derivative
            self.rows, _ = reference.meta_step(
                self.twin,
                self.rows,
                reference.instance_probs,
                self.train,
                self.meta,
                self.y_meta,
                label_lr=5.0,
                optimizer=reference.SGDState(0.1),
            )

    def check(self):
        torch.testing.assert_close(self.labels.label_logits[self.index], self.rows, rtol=1e-10, atol=1e-10)
        for mine, theirs in zip(self.model.parameters(), self.twin.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("compile", ["off", pytest.param("trace", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (bert, encoding),
        (vit, pixels),
        (deberta, encoding),  # whose activations are in a dict that makes them as they are read
    ],
)
def test_a_step_is_the_references(model, batch, compile):
    case = Case(model, batch, compile)
    for _ in range(2):
        case.steps()
    case.check()
    assert case.step.eager_because == ""


def test_one_graph_serves_masks_with_and_without_padding():
    """Their forward asks whether a mask is full, and leaves it out then."""
    case = Case(bert, lambda count: encoding(count, shortest=LENGTH), "trace")
    for shortest in (LENGTH, 4, LENGTH):
        case.train, case.meta = encoding(N, shortest), encoding(M, shortest)
        case.steps()
    case.check()
    assert len(case.step.graphs) == 1


def test_dropout_draws_as_in_the_reference():
    torch.manual_seed(0)
    model = bert(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1).double()
    train, meta, y, y_meta = encoding(N), encoding(M), torch.randint(C, (N,)), torch.randint(C, (M,))
    labels = fastmeta.InstanceLabels(y, C, dtype=F64)
    rows = labels.label_logits.clone()
    torch.manual_seed(1)
    sgd = reference.SGDState(0.1)
    truth = reference.label_gradient(model, rows, reference.instance_probs, train, meta, y_meta, lookahead=sgd)
    torch.manual_seed(1)
    step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=0.1), label_lr=5.0)
    step((train, torch.arange(N)), (meta, y_meta))
    torch.testing.assert_close(labels.label_logits, rows - 5.0 * truth.grad, rtol=1e-10, atol=1e-10)


def test_adamw_with_a_look_ahead_of_a_fixed_rate():
    case = Case(bert, encoding)
    with pytest.raises(TypeError, match=r"lookahead='sgd' follows torch\.optim\.SGD, got AdamW; pass a float"):
        fastmeta.MetaStep(case.model, case.labels, torch.optim.AdamW(case.model.parameters()))
    adamw = torch.optim.AdamW(case.model.parameters(), lr=1e-2)
    step = fastmeta.MetaStep(case.model, case.labels, adamw, lookahead=0.1, label_lr=5.0)
    plain = torch.optim.AdamW(case.twin.parameters(), lr=1e-2)
    for _ in range(2):
        step((case.train, case.index), (case.meta, case.y_meta))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            truth = reference.label_gradient(
                case.twin,
                case.rows,
                reference.instance_probs,
                case.train,
                case.meta,
                case.y_meta,
                lookahead=reference.SGDState(0.1),
            )
            case.rows = case.rows - 5.0 * truth.grad
            logits = case.twin(**case.train).logits
            plain.zero_grad()
            torch.nn.functional.cross_entropy(logits, case.rows.softmax(1)).backward()
            plain.step()
    case.check()


class Texts(torch.utils.data.Dataset):
    def __init__(self, count):
        self.targets = [i % C for i in range(count)]
        self.encoding = encoding(count)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, row):
        return {name: t[row] for name, t in self.encoding.items()}, self.targets[row]


def test_the_trainer_learns_labels_of_texts(tmp_path):
    data = {"train": Texts(60), "meta": Texts(12), "test": Texts(12)}
    options = {"epochs": 2, "threads": 1, "noise": "uniform:0.3", "optim": OptimConfig(name="adamw")}
    config = fastmeta.TrainConfig(model=None, out=str(tmp_path / "run"), **options)
    model = bert()
    run = fastmeta.train(config, model=model, data=data)
    assert run.summary["label_accuracy_initial"] < 0.95
    assert torch.equal(fastmeta.load_run(run.path, model=model).labels.probs(), run.labels.probs())


def test_labels_in_the_batch_and_outputs_as_tuples():
    """A loader of theirs gives `labels` too: the model then computes a loss, which nobody asks for."""
    case = Case(bert, encoding)
    for batch, y in ((case.train, case.targets[case.index]), (case.meta, case.y_meta)):
        batch["labels"] = y
    case.steps()
    case.check()
    model = bert(return_dict=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    labels = fastmeta.InstanceLabels(case.targets, C)
    batches = (encoding(N), case.index), (encoding(M), case.y_meta)
    with pytest.raises(TypeError, match=r"as \.logits or as \['logits'\], got tuple; pass logits_of="):
        fastmeta.MetaStep(model, labels, optimizer)(*batches)
    step = fastmeta.MetaStep(model, labels, optimizer, logits_of=lambda output: output[0])
    assert bool(step(*batches).finite)
