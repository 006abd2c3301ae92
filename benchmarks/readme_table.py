"""Write the tables of README.md and docs/benchmarks.md from results/*.json: `python benchmarks/readme_table.py`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODELS = (("step-mlp-cpu.json", "MLP"), ("step-resnet20-cpu.json", "ResNet-20"))
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def load(name: str) -> dict[str, Any]:
    return json.loads((HERE / "results" / name).read_text())


def main_job() -> list[str]:
    content = load("main-job.json")
    runs = content["runs"]

    def cell(values: list[float]) -> str:
        return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"

    def accuracy(pick: Any) -> str:
        return " | ".join(cell([pick(r)[f"test_accuracy_{which}"] for r in runs]) for which in ("last", "best"))

    labels = [cell([r[f"label_accuracy_{when}"] for r in runs]) for when in ("initial", "final")]
    seconds = statistics.mean(r["wall_seconds_of_all_four"] for r in runs)
    return [
        f"Digits, 40% uniform label noise, 30 clean images, {len(runs)} seeds; {seconds:.0f} s for four rows:",
        "",
        "| labels | test %, last epoch | best epoch | training labels right, % |",
        "|---|---|---|---|",
        f"| learned per sample | {accuracy(lambda r: r)} | {labels[0]} → {labels[1]} |",
        f"| fixed, as given | {accuracy(lambda r: r['baselines']['noisy'])} | {labels[0]} |",
        f"| fixed, given and clean together | {accuracy(lambda r: r['baselines']['union'])} | |",
        f"| the 30 clean images alone | {accuracy(lambda r: r['baselines']['clean'])} | |",
        f"| as given, scikit-learn's kernel SVM | {cell([r['svc'] for r in runs])} | | {labels[0]} |",
        f"| softened as ours start (0.6), never moved | {accuracy(lambda r: r['soft_start_frozen'])} | {labels[0]} |",
        f"| softened more (0.4), never moved | {accuracy(lambda r: r['softer_start_frozen'])} | {labels[0]} |",
    ]


def steps() -> list[str]:
    lines = [
        "",
        "One exact meta step, float32, one CPU thread, paired in one process:",
        "",
        "| model (train / meta) | step | ms | × plain SGD step | × faster than autograd | train forwards | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    shown = {
        "sgd": "plain SGD",
        "sgd:compiled": "plain SGD, inductor",
        "fastmeta": "fastmeta",
        "fastmeta:trace": '`compile="trace"`',
        "fastmeta:full": '`compile="full"`',
        "reference": "autograd reference",
        "higher": "higher",
        "torchopt": "TorchOpt",
    }
    for name, title in MODELS:
        content = load(name)
        config = content["config"]
        title = f"{title} ({config['batch']} / {config['meta_batch']})"
        for row in content["rows"]:
            if row["variant"] not in shown or row["milliseconds"] is None:
                continue
            plain = 1.0 if row["variant"] == "sgd" else row["ratios"]["sgd"]
            gain = 1.0 if row["variant"] == "reference" else 1 / row["ratios"]["reference"]
            own = row["variant"].startswith("sgd")
            cells = (
                title,
                shown[row["variant"]],
                f"{row['milliseconds']:.1f}",
                f"{plain:.2f}",
                "" if own else f"{gain:.2f}",
                "" if row["forwards"] is None else f"{row['forwards']:.1f}",
                "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.1f}",
            )
            lines.append("| " + " | ".join(cells) + " |")
            title = ""
    return lines


def small() -> list[str]:
    content = load("small-step.json")
    sizes, rows = content["sizes"], content["rows"]
    models = {
        "mlp": f"`nn.Sequential` {sizes['features']}-{sizes['hidden']}-{sizes['classes']}",
        "head": f"`nn.Linear` {sizes['features']}-{sizes['classes']}",
        "module": "the first with a forward of its own",
    }
    shown = {"plain": "plain SGD", "eager": "fastmeta", "trace": '`compile="trace"`', "full": '`compile="full"`'}
    lines = [
        "",
        f"Of small networks, {sizes['rows']} and {sizes['meta_rows']} rows, beside autograd through the look-ahead:",
        "",
        f"| model | autograd, ms | {' | '.join(shown.values())} |",
        "|---" * (2 + len(shown)) + "|",
    ]
    for model, title in models.items():
        of = {row["variant"]: row for row in rows if row["model"] == model}
        ratios = (f"{of[variant]['to_naive']:.2f}×" for variant in shown)
        lines.append(f"| {title} | {of['naive']['milliseconds']:.2f} | {' | '.join(ratios)} |")
    return lines


SHORT = ("Digits", "| labels |", "|---", "| learned", "| fixed, as", "| as given", "| softened more")


def short() -> list[str]:
    """The README's: the rows of the main job that say most, and what a step costs."""
    lines = main_job()
    rows = [lines[0], "", *(line for line in lines[1:] if line.startswith(SHORT))]
    costs = []
    for name, title in MODELS:
        full = next(row for row in load(name)["rows"] if row["variant"] == "fastmeta:full")["ratios"]
        costs.append(f"{full['sgd']:.1f} on {title} ({1 / full['reference']:.1f}× faster than autograd)")
    return [*rows, "", f"One exact compiled step, in plain SGD steps: {', '.join(costs)}."]


def write(path: Path, lines: list[str]) -> None:
    before, rest = path.read_text().split(BEGIN)
    _, after = rest.split(END)
    path.write_text(before + "\n".join([BEGIN, *lines, END]) + after)


def main() -> None:
    machine = load("step-mlp-cpu.json")["environment"]
    cpu = f"{machine['cpu']['model']}, {machine['cpu']['capability']}"
    hardware = f"Measured on {cpu}, torch {machine['torch']}; files and commands in `benchmarks/`."
    write(HERE.parent / "docs" / "benchmarks.md", [*main_job(), *steps(), *small(), "", hardware])
    write(HERE.parent / "README.md", short())


if __name__ == "__main__":
    main()
