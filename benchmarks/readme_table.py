"""Write the tables of README.md and docs/benchmarks.md from results/*.json: `python benchmarks/readme_table.py`."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODELS = (("step-mlp-cpu.json", "MLP"), ("step-resnet20-cpu.json", "ResNet-20"))
PEERS = (("step-peers-mlp-cpu.json", "MLP"), ("step-peers-resnet20-cpu.json", "ResNet-20"))
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def load(name: str) -> dict[str, Any]:
    return json.loads((HERE / "results" / name).read_text())


def percent(values: Iterable[float]) -> str:
    found = [100 * value for value in values]
    return f"{statistics.mean(found):.1f} ± {statistics.stdev(found):.1f}"


def job_rows() -> dict[str, list[str]]:
    """Cells of the main job's table, without their titles, by row."""
    runs = load("main-job.json")["runs"]

    def row(name: str, right: str = "") -> list[str]:
        best = percent(r[name]["test_accuracy_best"] for r in runs) if "test_accuracy_best" in runs[0][name] else ""
        svm = percent(r["svm"][name] for r in runs) if name in runs[0]["svm"] else ""
        return [percent(r[name]["test_accuracy_last"] for r in runs), best, right, svm]

    def final(name: str) -> str:
        return percent(r[name]["label_accuracy_final"] for r in runs)

    given = percent(r["label_accuracy_initial"] for r in runs)
    return {
        "learned": row("learned", f"{given} → {final('learned')}"),
        "noisy": row("noisy", given),
        "softened": row("softened", given),
        "union": row("union"),
        "clean": row("clean"),
        "finetuned": row("finetuned", final("finetuned")),
    }


TITLES = {
    "learned": "**learned**",
    "noisy": "as given",
    "softened": "softened, never moved",
    "union": "given and clean",
    "clean": "clean alone",
    "finetuned": "given, fine-tuned on clean",
}


def job_line() -> str:
    runs = load("main-job.json")["runs"]
    wrong = 1 - statistics.mean(r["label_accuracy_initial"] for r in runs)
    seconds = statistics.mean(r["cpu_seconds"] for r in runs)
    time = f"{seconds:.0f} s for all rows of a seed"
    return f"Digits, 80% uniform noise ({100 * wrong:.0f}% wrong), 30 clean images, {len(runs)} seeds, {time}:"


def main_job() -> list[str]:
    content = load("main-job.json")
    lines = [
        job_line(),
        "",
        "| labels | test %, last epoch | best epoch | training labels right, % | kernel SVM on these labels, test % |",
        "|---|---|---|---|---|",
        *(f"| {TITLES[name]} | {' | '.join(cells)} |" for name, cells in job_rows().items()),
        "",
        "Learned labels less the others, the same seed's each, in points with 95% intervals:",
        "",
        "| less | test, last epoch | test of the kernel SVM |",
        "|---|---|---|",
    ]
    for name, title in TITLES.items():
        cells = [points(content["learned_minus"].get(key)) for key in (name, f"svm:{name}")]
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def points(found: Mapping[str, float] | None) -> str:
    return (
        ""
        if found is None
        else "{mean:+.1f} ({low:+.1f} to {high:+.1f})".format_map({key: 100 * value for key, value in found.items()})
    )


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


#: variants of results/step-peers-*.json by title; those of a loss beside its naive step, which comes first
PEER_STEPS = {
    "labels": {
        "reference": "autograd reference",
        "fastmeta": "fastmeta",
        "fastmeta:trace": '`compile="trace"`',
        "fastmeta:full": '`compile="full"`',
        "reference:compiled": "the reference, inductor",
        "autograd": "a script of autograd",
        "higher": "higher",
        "torchopt": "TorchOpt",
        "emlc": "EMLC's forward-mode product",
        "betty": "Betty's difference",
    },
    **{
        title: {
            f"naive:{name}": "naive autograd",
            name: "fastmeta",
            f"{name}:trace": '`compile="trace"`',
            f"{name}:full": '`compile="full"`',
        }
        for name, title in {"mwnet": "MW-Net", "l2rw": "L2RW", "mlc": "MLC"}.items()
    },
}


def peers() -> list[str]:
    """Steps of others and of other losses: milliseconds and how much faster than the naive step; [] without files."""
    found = [(title, load(name)) for name, title in PEERS if (HERE / "results" / name).exists()]
    if not found:
        return []
    by_model = {title: {row["variant"]: row for row in content["rows"]} for title, content in found}
    lines = [
        "",
        "The same work by others' ways, and other losses, each by the naive step of the same loss:",
        "",
        f"| loss | step | {' | '.join(f'{title}, ms | × faster | error' for title in by_model)} |",
        "|---" * (2 + 3 * len(by_model)) + "|",
    ]
    for loss, steps_of in PEER_STEPS.items():
        head = loss
        for variant, title in steps_of.items():
            rows = [of.get(variant) for of in by_model.values()]
            if all(row is None or row["milliseconds"] is None for row in rows):
                continue
            lines.append(f"| {head} | {title} | {' | '.join(' | '.join(peer_cells(row)) for row in rows)} |")
            head = ""
    machine = found[0][1]["environment"]
    return [
        *lines,
        "",
        "Error: of the first step to the naive one's in float64, of what is compiled in float32. The reference through "
        "inductor is the naive formula as our own trace of it, for torch alone has no graph of a double backward. "
        f"Measured on {hardware(machine)}.",
    ]


def peer_cells(row: Mapping[str, Any] | None) -> list[str]:
    """Milliseconds, times faster than naive, error; why not where the variant was not timed."""
    if row is None or row["milliseconds"] is None:
        return ["skipped", "", ""]
    naive = row["ratios"].get(row["naive"])
    error = row["error"]
    return [
        f"{row['milliseconds']:.1f}",
        "" if naive is None else f"{1 / naive:.2f}",
        "" if error is None or row["variant"] == row["naive"] else f"{error:.0e}",
    ]


def hardware(machine: Mapping[str, Any]) -> str:
    return f"{machine['cpu']['model']}, {machine['cpu']['capability']}, torch {machine['torch']}"


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


#: methods of results/worth.json; of ours the first that is there
NEWS = {"given": "as given", "finetuned": "then fine-tuned on 100 clean texts"}
OURS = {"default": "learned", "exact": "by exact steps"}


def news() -> list[str]:
    """What it is for: labels that people got wrong."""
    rows = [row for row in load("worth.json")["rows"] if row["set"] == "news"]
    found = []
    for name, title in (NEWS | OURS).items():
        of = [row for row in rows if row["method"] == name]
        test, right = (100 * statistics.mean(row[key] for row in of) for key in ("test", "labels_right"))
        found.append(f"{title} {test:.1f}, {right:.1f}")
    head = "News labelled by people (NoisyAG-News), test % and training labels right"
    return [f"{head}: {'; '.join(found)}.", ""]


def short() -> list[str]:
    """The README's: news, the main job, and what a step costs."""
    rows = []
    for name, (last, _, right, svm) in job_rows().items():
        cells = (re.sub(r" ± [\d.]+", "", cell) for cell in (last, right, svm))
        rows.append(f"| {TITLES[name]} | {' | '.join(cells)} |")
    head = ["| labels | test % | labels right, % | kernel SVM on them, test % |", "|---|---|---|---|"]
    costs = []
    for name, title in MODELS:
        full = next(row for row in load(name)["rows"] if row["variant"] == "fastmeta:full")["ratios"]
        costs.append(f"{full['sgd']:.1f} on {title} ({1 / full['reference']:.1f}×)")
    cost = f"One exact compiled step, in plain SGD steps (times faster than autograd): {', '.join(costs)}."
    return [*news(), job_line(), "", *head, *rows, "", cost]


def page() -> list[str]:
    """That of docs/benchmarks.md, but for its last line."""
    return [*main_job(), *steps(), *peers(), *small()]


def write(path: Path, lines: list[str]) -> None:
    before, rest = path.read_text().split(BEGIN)
    _, after = rest.split(END)
    path.write_text(before + "\n".join([BEGIN, *lines, END]) + after)


def main() -> None:
    machine = load("step-mlp-cpu.json")["environment"]
    rest = f"Measured on {hardware(machine)}, where nothing else is said; files and commands in `benchmarks/`."
    write(HERE.parent / "docs" / "benchmarks.md", [*page(), "", rest])
    write(HERE.parent / "README.md", short())


if __name__ == "__main__":
    main()
