"""Label tables as a user might write them."""

import torch

import fastmeta


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
