"""Label tables as a user might write them, and steps on tables."""

import torch

import fastmeta
from tests.support import cases

REPEATED = [3, 3, 7, 1, 0, 3, 7, 11]


def problem(table, dtype=torch.float32, name="groupnorm", **kw):
    case = cases.make(name, dtype=dtype)
    labels = fastmeta.InstanceLabels(case.targets, case.num_classes, 0.6, dtype=dtype, table=table)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    return case, labels, fastmeta.MetaStep(case.model, labels, optimizer, label_lr=50.0, **kw)


def index_of(case, kind):
    n = len(case.index)
    return torch.tensor((REPEATED * n)[:n]) % len(case.targets) if kind == "repeated" else case.index


def after(table, kind="repeated", weight=None, steps=3, **kw):
    """All that some steps have made."""
    case, labels, step = problem(table, **kw)
    weight = None if weight is None else torch.linspace(0, 2, len(case.index), dtype=case.x.dtype)
    for k in range(steps):
        result = step((case.x * (1 + 0.1 * k), index_of(case, kind)), case.meta, weight=weight)
    every = torch.arange(len(labels))
    made = {**vars(result), **case.model.state_dict(), "rows": labels.rows(every), "probs": labels.probs()}
    return made | {"counters": torch.stack(labels.counters() or [torch.zeros(())])}, labels


WAYS = {
    "exact": {},
    "unique": {"kind": "distinct", "unique_index": True},
    "weights": {"weight": True},
    "forward": {"tangent": "forward"},
    "pieces": {"micro_batch": 5},
    "delayed": {"approx": "delayed"},
    "between": {"approx": "every:2"},
    "traced": {"compile": "trace"},
    "chain of layers": {"name": "mlp"},
    "default rate": {"lookahead": "optimizer"},
}


class Sparse(fastmeta.LabelTable):
    """Holds the rows that have moved alone; counts what is asked of it."""

    def __init__(self, start):
        super().__init__(start)
        self.moved = {}
        self.calls = []

    def rows(self, index):
        self.calls.append(("rows", index.tolist()))
        rows = self.start.rows(index)
        for place, row in enumerate(index.tolist()):
            if row in self.moved:
                rows[place] = self.moved[row]
        return rows

    def write_(self, index, rows):
        self.calls.append(("write_", index.tolist()))
        for row, values in zip(index.tolist(), rows, strict=True):
            assert row not in self.moved or self.moved[row].shape == values.shape
            self.moved[row] = values.clone()

    def get_extra_state(self):
        return {"moved": {k: v.clone() for k, v in self.moved.items()}}

    def set_extra_state(self, state):
        self.moved = {int(k): v.clone() for k, v in state["moved"].items()}


class Halves(fastmeta.LabelTable):
    """Two buffers, as over two devices."""

    def __init__(self, start):
        super().__init__(start)
        every = torch.arange(start.shape[0], device=start.device)
        self.register_buffer("even", start.rows(every[::2]))
        self.register_buffer("odd", start.rows(every[1::2]))

    @property
    def dtype(self):
        return self.even.dtype

    def rows(self, index):
        made = torch.empty(len(index), self.shape[1], dtype=self.dtype, device=index.device)
        for half, buffer in enumerate((self.even, self.odd)):
            mine = index % 2 == half
            made[mine] = buffer[index[mine] // 2]
        return made

    def write_(self, index, rows):
        for half, buffer in enumerate((self.even, self.odd)):
            mine = index % 2 == half
            buffer[index[mine] // 2] = rows[mine]
