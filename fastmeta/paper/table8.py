"""Table 8: as table 2, on CIFAR-10."""

from fastmeta.paper.table2 import Regularisers


class Table8(Regularisers):
    name, title, data = "table8", "Fixed-label regularisers, CIFAR-10", "cifar10"
