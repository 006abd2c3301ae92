"""The cost of a traced step."""

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode

import fastmeta
from fastmeta.functional.network import Network
from fastmeta.meta.approximation import Approximation
from fastmeta.meta.engines.traced import GraphStep
from fastmeta.meta.lookahead import LookAhead
from fastmeta.meta.tangents import TangentPlan


def graph_flops(model, num_classes, n, m, shape, way, approx=None):
    """FLOPs of the traced step and of one train forward, on meta-like fake tensors: nothing is computed."""
    labels = fastmeta.InstanceLabels(torch.zeros(n, dtype=torch.int64), num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    step = GraphStep(
        Network(model),
        labels,
        optimizer,
        LookAhead("sgd", optimizer),
        TangentPlan(way, False, "asked for"),
        mode="trace",
        unique=True,
        approx=Approximation.parse(approx),
    )
    batches = ((torch.zeros(n, *shape), torch.arange(n)), (torch.zeros(m, *shape), torch.zeros(m, dtype=torch.int64)))
    graph = step.graph_of(*batches)
    values = [n.meta["val"] for n in graph.graph.nodes if n.op == "placeholder"]
    with torch.no_grad(), values[0].fake_mode, FlopCounterMode(display=False) as whole:
        graph(*values)
    on_meta = copy.deepcopy(model).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        on_meta(torch.zeros(n, *shape, device="meta"))
    return whole.get_total_flops() / forward.get_total_flops()
