"""A model under fully_shard on two processes equals the same model in whole, and autograd in one process."""

import json

import pytest
import torch
import torch.distributed as dist

import fastmeta
from tests.support.losses import Corrector, SampleWeights
from tests.support.meta import ETA, FAMILIES, draw, optimizers, relative, run_reference
from tests.support.ranks import run_ranks
from tests.support.sharded import built, labelled, part, shard, trained, whole

STEPS = 3
INSTANCE, CLASS = FAMILIES

#: against autograd: model, family, optimizer, look-ahead, how it is sharded
REFERENCE = {
    "mlp, fixed rate": ("mlp", INSTANCE, "plain", 0.3, "nested"),
    "mlp, class labels": ("mlp", CLASS, "nesterov", "optimizer", "root"),
    "groupnorm, Eq. (3)": ("groupnorm", INSTANCE, "momentum", "sgd", "gathered"),
    "attention, nesterov": ("attention", INSTANCE, "nesterov", "optimizer", "nested"),
    "attention, dampened": ("attention", CLASS, "dampened", "optimizer", "gathered"),
    "embedding": ("embedding", INSTANCE, "momentum", "optimizer", "root"),
}

#: against the same model in whole on the same ranks: model, family, how it is sharded, and how the step is made
WHOLE = {
    "BatchNorm": ("resnet", INSTANCE, "nested", {}),
    "dropout, frozen, others": ("dropped", INSTANCE, "nested", {}),
    "dropout, gathered": ("dropped", CLASS, "gathered", {}),
    "tied, checkpointed": ("tied", INSTANCE, "root", {}),
    "weights": ("mlp", INSTANCE, "nested", {"weighted": True}),
    "normalised": ("groupnorm", INSTANCE, "nested", {"label_lr": None}),
    "normalised classes": ("mlp", CLASS, "nested", {"label_lr": None, "label_step": 0.2}),
    "delayed": ("mlp", INSTANCE, "nested", {"approx": "delayed"}),
    "every": ("mlp", INSTANCE, "nested", {"approx": "every:2"}),
    "last": ("mlp", INSTANCE, "nested", {"approx": "last:2"}),
    "sample weights": ("mlp", SampleWeights, "nested", {}),
    "corrector": ("mlp", Corrector, "gathered", {}),
    "adam": ("mlp", INSTANCE, "nested", {"optimizer": "adam", "lookahead": 0.2}),
    "clipped": ("mlp", INSTANCE, "nested", {"clip": 0.05}),
    "autocast": ("groupnorm", INSTANCE, "nested", {"autocast": True, "dtype": torch.float32}),
    "float32": ("attention", INSTANCE, "nested", {"dtype": torch.float32}),
    "poisoned": ("mlp", INSTANCE, "nested", {"poison": True}),
    "replicas": ("mlp", INSTANCE, "replicas", {}),
}


def sharded_model(case, size, how):
    if how == "replicas":
        mesh = dist.device_mesh.init_device_mesh("cpu", (size, 1), mesh_dim_names=("replicas", "shards"))
        return shard(case.model, mesh)
    return shard(case.model, dist.device_mesh.init_device_mesh("cpu", (size,)), how)


def against_reference(rank, size, name, family, optimizer, lookahead, how):
    case, labels = labelled(name, family)
    sharded_model(case, size, how)
    kw = {"lookahead": lookahead, "label_lr": ETA[family.family], "unique_index": True}
    step = built(case, labels, optimizer, process_group=dist.group.WORLD, **kw)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        index, x, x_meta, y_meta = (part(t, rank, size) for t in draw(case, generator))
        assert bool(step((x, index), (x_meta, y_meta)).finite)
    return labels.state_dict(), whole(case.model.state_dict())


def clip(largest):
    def on_grad(grads):
        norm = torch.nn.utils.get_total_norm(grads.values())
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        for g in grads.values():
            g.mul_((largest / norm).clamp(max=1))

    return on_grad


def run(rank, size, name, family, how, setting):
    """Labels, model, optimizer and results of three steps; `how` is None for a model in whole."""
    setting = dict(setting)
    dtype, weighted, autocast, poison = (setting.pop(k, None) for k in ("dtype", "weighted", "autocast", "poison"))
    case, labels = (
        labelled(name, family, dtype=dtype or torch.float64)
        if family in FAMILIES
        else (labelled(name, INSTANCE)[0], None)
    )
    if labels is None:
        torch.manual_seed(5)
        labels = family(case.targets, case.num_classes)
        setting["loss_optimizer"] = torch.optim.Adam(labels.parameters(), lr=0.01)
    else:
        setting.setdefault("label_lr", ETA[family.family])
    if how is not None:
        sharded_model(case, size, how)
    setting.setdefault("lookahead", "optimizer")
    if setting.pop("optimizer", "") == "adam":
        optimizer = torch.optim.AdamW(trained(case.model), lr=0.01)
    else:
        optimizer = optimizers(trained(case.model))["nesterov"]
    if largest := setting.pop("clip", None):
        setting["on_grad"] = clip(largest)
    step = fastmeta.MetaStep(case.model, labels, optimizer, process_group=dist.group.WORLD, **setting)
    torch.manual_seed(10 + rank)
    results = []
    for i in range(STEPS):
        x, index, x_meta, y_meta = (part(t, rank, size) for t in (case.x, case.index, case.x_meta, case.y_meta))
        x = x * (1 + 0.1 * i) if x.is_floating_point() else x
        if poison and i == 1 and rank == 1:
            x = x * float("nan")
        weight = torch.linspace(0.5, 1.5, len(index), dtype=x.dtype) if weighted else None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(autocast)):
            results.append(step((x, index), (x_meta, y_meta), weight=weight))
        case.model(x)  # leaves the root's parameters gathered
    state = {f"{i}.{k}": t for i, s in enumerate(optimizer.state.values()) for k, t in s.items()}
    return labels.state_dict(), whole(case.model.state_dict()), whole(state), results


def differences(ours, theirs):
    """The largest of all, relative."""
    return max(relative(a.double(), theirs[k].double()) for k, a in ours.items() if a.is_floating_point())


def compared(rank, size, key):
    name, family, how, setting = WHOLE[key]
    theirs, ours = run(rank, size, name, family, None, setting), run(rank, size, name, family, how, setting)
    found = {kind: differences(a, b) for kind, a, b in zip(("labels", "model", "state"), ours, theirs, strict=False)}
    for field in ("train_loss", "meta_loss", "logits", "alignment", "label_grad_norm"):
        a, b = (torch.stack([getattr(r, field).double() for r in of[3]]).nan_to_num() for of in (ours, theirs))
        found[field] = relative(a, b)
    return found | {"finite": [bool(r.finite) for r in ours[3]], "same": [bool(r.finite) for r in theirs[3]]}


def worker(rank, size, folder):
    for key, job in REFERENCE.items():
        torch.save(against_reference(rank, size, *job), f"{folder}/{key} {rank}.pt")
    found = {key: compared(rank, size, key) for key in WHOLE}
    with open(f"{folder}/whole {rank}.json", "w") as file:
        json.dump(found, file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sharded")
    run_ranks(worker, 2, path, str(path))
    return path


@pytest.mark.parametrize("key", REFERENCE)
def test_equals_autograd_in_one_process(folder, key):
    name, family, optimizer, lookahead, _ = REFERENCE[key]
    case, labels = labelled(name, family)
    group = optimizers(list(case.model.parameters()))[optimizer].param_groups[0]
    start = labels.state_dict()
    parameter = "label_logits" if family is INSTANCE else "alpha"
    before = start[parameter].clone()
    table = run_reference(case, labels, lookahead, group, STEPS)
    assert relative(table, before) > 1e-4
    for rank in range(2):
        learned, model = torch.load(folder / f"{key} {rank}.pt")
        assert relative(learned[parameter], table) < 1e-12
        for k, p in case.model.state_dict().items():
            assert relative(model[k], p) < 1e-12, k


@pytest.mark.parametrize("key", WHOLE)
def test_equals_the_model_in_whole(folder, key):
    bound = {"float32": 2e-5, "autocast": 0.05}.get(key, 1e-12)
    for rank in range(2):
        found = json.loads((folder / f"whole {rank}.json").read_text())[key]
        finite = found.pop("finite")
        assert finite == found.pop("same") == [True, key != "poisoned", True]
        assert {kind: d for kind, d in found.items() if not d < bound} == {}
