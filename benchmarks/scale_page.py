"""The section "Measured" of docs/scale.md, from results/scale.json and what steps took on a card.

fastmeta bench scale --threads 1 --json benchmarks/results/scale.json     # in a quiet quarter of an hour
python benchmarks/scale_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from readme_table import write

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "scale.md"
#: bytes a second from card to card that the arithmetic goes by: NVLink of one machine, 400 Gb/s between machines
LINKS = {8: 300e9, 64: 50e9}
#: of a network: steps on a card
STEPS = {"ResNet-18": "step-resnet18-cuda.json", "WRN-28-10": "step-wrn28_10-cuda.json"}
STEP = "fastmeta:full"


MEANS = (
    "**What falls short.** A table in a file costs more than 5% where a step is as short as with 1,000 classes: each",
    "of its rows is a call of the system, two in a step. Where every row is journaled it costs more than 5% at 21,841",
    "classes, too. Gloo on two cores takes a large part of the step of an MLP, whose gradients have as many numbers as",
    "its matrices. Images from a folder are decoded on the cores that compute. Arrays without workers keep 95%.",
)


def load(name: str) -> dict[str, Any]:
    return json.loads((HERE / "results" / name).read_text())


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}%".replace("-", "−")


def ranks(found: dict[str, Any]) -> list[str]:
    lines = [
        "| two processes, gloo | one process | weak: rows a process stay | strong: rows in all stay | in collectives |",
        "|---|---|---|---|---|",
    ]
    for name, of in found["networks"].items():
        one, weak, strong = of["one_process"], of["weak"], of["strong"]
        title = {"mlp": "MLP"}.get(name, "narrow ResNet")
        lines.append(
            f"| {title}, {of['batch']} + {of['batch']} rows, {weak['bytes'] / 1e6:.1f} MB a step | "
            f"{1e3 * one['step_seconds']:.0f} ms | {1e3 * weak['step_seconds']:.0f} ms, "
            f"{percent(weak['efficiency'], 0)} | {1e3 * strong['step_seconds']:.0f} ms, {strong['speed_up']:.2f}× | "
            f"{percent(weak['reduction'], 0)}, {percent(strong['reduction'], 0)} |"
        )
    return lines


def stores(found: dict[str, Any]) -> list[str]:
    lines = [
        "| over a dense table | all steps | first visit of a row | every row journaled | between |",
        "|---|---|---|---|---|",
    ]
    for size in found["sizes"]:
        for name, store in size["stores"].items():
            if name != "device":
                phases = store["over_device_by_phase"].values()
                cells = [percent(store["over_device"]), *("–" if v is None else percent(v) for v in phases)]
                lines.append(f"| {name}, {size['rows']:,} × {size['classes']:,} | {' | '.join(cells)} |")
    return lines


def rows(found: dict[str, Any]) -> list[str]:
    lines = [
        f"| rows × {found['classes']:,} in a file | step | over the fewest rows | start | file | on the disk | "
        "checkpoint | going back |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size in found["sizes"]:
        lines.append(
            f"| {size['rows']:,} | {1e3 * size['step_seconds']:.0f} ms | {percent(size['over_fewest_rows'])} | "
            f"{size['start_seconds']:.2f} s | {size['file_bytes'] / 1e9:,.1f} GB | {size['disk_bytes'] / 1e9:.2f} GB | "
            f"{size['checkpoint_seconds']:.2f} s | {size['restore_seconds']:.2f} s |"
        )
    growth = found["resident_growth_bytes"] / 2**20
    return [*lines, "", f"The four tables together took {growth:.0f} MiB more memory over these steps."]


def data(found: dict[str, Any]) -> list[str]:
    names = list(found["networks"][0]["share_of_throughput"])
    lines = [f"| throughput beside samples in memory | step | {' | '.join(names)} |", "|---|---|---|---|---|"]
    for network in found["networks"]:
        shares = " | ".join(percent(network["share_of_throughput"][name]) for name in names)
        lines.append(f"| {network['what']} | {1e3 * network['step_seconds']['memory']:.0f} ms | {shares} |")
    return lines


def arithmetic() -> list[str]:
    heads = [f"{count} ranks at {link / 1e9:.0f} GB/s" for count, link in LINKS.items()]
    lines = [f"| bfloat16, 128 + 256 rows a card | step | sent | {' | '.join(heads)} |", "|---|---|---|---|---|"]
    for title, file in STEPS.items():
        content = load(file)
        milliseconds = next(row["milliseconds"] for row in content["rows"] if row["variant"] == STEP)
        sent = 12 * content["sizes"]["parameters"]
        cells = []
        for count, link in LINKS.items():
            more = 1e3 * sent * 2 * (count - 1) / count / link
            cells.append(f"{more:.1f} ms more, {percent(more / milliseconds, 0)}")
        lines.append(f"| {title} | {milliseconds:.1f} ms | {sent / 1e6:.0f} MB | {' | '.join(cells)} |")
    return lines


def page() -> list[str]:
    content = load("scale.json")
    parts, machine = content["parts"], content["environment"]
    made = [*ranks(parts["ranks"]), "", *stores(parts["stores"]), "", *rows(parts["rows"]), "", *data(parts["data"])]
    said = (
        f"{machine['cpu']['model']}, two cores, torch {machine['torch']}; `{machine['command']}`, "
        "`benchmarks/results/scale.json`."
    )
    sums = (
        "**Arithmetic, not run:** the step is the captured one of one H200, as measured; what is sent is 12 bytes a "
        "parameter, by a ring, at a stated bandwidth, and waited for."
    )
    return [*made, "", said, "", *MEANS, "", sums, "", *arithmetic()]


if __name__ == "__main__":
    write(PAGE, page())
