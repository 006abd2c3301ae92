"""A step of a model under fully_shard beside a plain FSDP step: seconds, and the most bytes that a rank holds.

    torchrun --standalone --nproc-per-node 2 benchmarks/sharded_step.py

A transformer without a vocabulary, 18.9M parameters in float32, 4 rows of 64 tokens in train and meta batch of each
rank. The two steps take turns. Bytes are those above what lies in memory between steps (shards, momentum, labels). The
figures go to results/sharded-step.json, unless --no-json is given.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import fastmeta
from fastmeta.bench.environment import record
from fastmeta.bench.result_files import write
from fastmeta.measure import peak_bytes

MIB = 2**20


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (8, -1)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Net(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(48, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--rows", type=int, default=4, help="of each rank's train batch, and of its meta batch")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--no-json", action="store_true")
    args = parser.parse_args()
    dist.init_process_group("gloo")
    rank, size, n = dist.get_rank(), dist.get_world_size(), args.rows
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Net(args.width, args.depth)
    numbers = sum(p.numel() for p in model.parameters())
    mesh = init_device_mesh("cpu", (size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    labels = fastmeta.InstanceLabels(torch.randint(10, (n * size,)), 10)
    step = fastmeta.MetaStep(model, labels, optimizer, label_lr=10.0, process_group=mesh.get_group())
    x, x_meta, y, index = torch.randn(n, 64, 48), torch.randn(n, 64, 48), torch.randint(10, (n,)), torch.arange(n)

    def plain() -> None:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    def meta() -> None:
        step((x, index + rank * n), (x_meta, y))

    seconds: dict[str, list[float]] = {"plain": [], "meta": []}
    for repeat in range(args.repeats + 1):
        for name, body in (("plain", plain), ("meta", meta)):
            dist.barrier()
            start = time.perf_counter()
            body()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    took = {name: statistics.median(values) for name, values in seconds.items()}
    peaks = {name: peak_bytes(body, torch.device("cpu")) / MIB for name, body in (("plain", plain), ("meta", meta))}
    if rank == 0:
        print(f"torch {torch.__version__}, {size} ranks, {numbers / 1e6:.1f}M parameters, {4 * numbers / MIB:.0f} MiB")
        print(f"s/step: plain {took['plain']:.2f}, meta {took['meta']:.2f}, ratio {took['meta'] / took['plain']:.2f}")
        print(f"peak MiB above what stays: plain {peaks['plain']:.0f}, meta {peaks['meta']:.0f}")
        if not args.no_json:
            content = {
                "environment": record(torch.device("cpu"), "torchrun --nproc-per-node 2 benchmarks/sharded_step.py"),
                "ranks": size,
                "parameters": numbers,
                "repeats": args.repeats,
                "seconds": took,
                "peak_mib": peaks,
            }
            write(Path(__file__).parent / "results" / "sharded-step.json", "sharded-step", content)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
