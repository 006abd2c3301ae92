"""Labels learned with a model under FSDP2 (fully_shard): no rank holds the model whole, and the step is exact.

torchrun --nproc-per-node 2 examples/fsdp.py      two processes on a CPU, or as many as there are GPUs
python examples/fsdp.py                           one process, for a look
"""

import os
import tempfile

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import fastmeta  # before there is a process group

SIZE, FEATURES, CLASSES, STEPS, BATCH = 2000, 20, 5, 100, 128


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


def data(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples, true classes, and given ones of which a third are wrong: the same on all ranks."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SIZE, FEATURES, generator=generator)
    true = (x @ torch.randn(FEATURES, CLASSES, generator=generator)).argmax(1)
    wrong = torch.rand(SIZE, generator=generator) < 1 / 3
    given = torch.where(wrong, torch.randint(CLASSES, (SIZE,), generator=generator), true)
    return x.to(device), true.to(device), given.to(device)


def main() -> None:
    torch.manual_seed(0)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if "RANK" in os.environ:  # torchrun
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    else:
        dist.init_process_group("gloo", init_method=f"file://{tempfile.mktemp()}", rank=0, world_size=1)
    rank, size = dist.get_rank(), dist.get_world_size()
    device = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0)) if kind == "cuda" else None)
    if kind == "cuda":
        torch.cuda.set_device(device)
    mesh = init_device_mesh(kind, (size,))

    model = nn.Sequential(nn.Linear(FEATURES, 64), Block(64), Block(64), nn.Linear(64, CLASSES)).to(device)
    for block in list(model)[1:3]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)  # last; then the optimizer, of shards
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)

    x, true, given = data(device)
    labels = fastmeta.InstanceLabels(given, CLASSES, 0.6)
    step = fastmeta.MetaStep(model, labels, optimizer, label_step=0.5, process_group=mesh.get_group())
    clean = torch.arange(200, device=device)  # rows whose class is known
    generator = torch.Generator().manual_seed(1)
    each = BATCH // size
    for _ in range(STEPS):
        # one draw on all ranks, of which each takes its part
        index = torch.randperm(SIZE, generator=generator)[rank * each : (rank + 1) * each].to(device)
        rows = clean[torch.randperm(len(clean), generator=generator)[rank * each : (rank + 1) * each].to(device)]
        result = step((x[index], index), (x[rows], true[rows]))
    read = labels.probs().argmax(1)
    before, after = ((t == true).float().mean().item() for t in (given, read))
    if rank == 0:
        print(f"last meta loss {float(result.meta_loss):.3f}; right labels: given {before:.1%}, learned {after:.1%}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
