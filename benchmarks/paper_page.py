"""What ``fastmeta reproduce`` has measured at scale cpu: docs/paper-cpu.md, its figures, and a JSON for each.

    fastmeta reproduce table1 table3 table4 table6 figure2 figure4 --scale cpu --data cifar10.npz \\
        --out runs/paper-cpu
    python benchmarks/paper_page.py runs/paper-cpu      # takes over what lies there, and measures nothing
    python benchmarks/paper_page.py                     # writes the page anew from the JSON
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "paper-cpu.md"
FIGURES = ROOT / "docs" / "paper-cpu"
ORDER = ("table1", "table3", "table4", "table6", "figure2", "figure4")
VERDICTS = ("reproduced", "not reproduced", "not decided")
HEAD = """# The paper's experiments on one core

What `fastmeta reproduce` has measured at scale `cpu`: 4,000 images of CIFAR-10, narrow networks, few epochs, {seeds}
seeds. That is far from the paper's setting: the numbers say whether a claim holds in small, and not how good a method
is. [Reproducing](reproducing.md) has the scales, how claims are judged, and what differs from the paper.

```sh
fastmeta reproduce {names} --scale cpu --data cifar10.npz --out runs/paper-cpu
```

**What it says.** Under 40% uniform noise learned labels are above plain training, the softened start, fine-tuning, and
training on given and clean rows; they are behind Co-teaching, which knows the share of wrong labels, and L2RW. They
put few of the wrong labels right, and more with the entropy curriculum left out. Without noise, labels that are
learned in folds do not help in so small a setting: the student of the same size does best on the labels as given.
What labels do is as published: α is high early and low late, and harder classes are smoothed more.

The runs were trained beside other work, those under noise by commit 3f5e9d5, the others by 2bbbc2b, in three folders
whose runs were put into one. Date and commit in the JSON are those of the last reading."""


def result_file(name: str) -> Path:
    return RESULTS / f"paper-cpu-{name}.json"


def take(out: Path) -> None:
    """Results and figures of the folder `out`."""
    FIGURES.mkdir(exist_ok=True)
    for name in ORDER:
        source = out / name / "result.json"
        if not source.exists():
            continue
        content = json.loads(source.read_text())
        if content["scale"] != "cpu" or not content["complete"]:
            raise SystemExit(
                f"{source} is of scale {content['scale']}, complete: {content['complete']}; run it to its end"
            )
        shutil.copyfile(source, result_file(name))
        for figure in shown(content):
            shutil.copyfile(out / name / figure["file"], FIGURES / picture(name, figure["file"]))


def shown(content: dict[str, Any]) -> list[dict[str, str]]:
    """Its figures; of a figure of the paper not the overview of its numbers, which are in the table."""
    overview = f"{content['name']}.png" if content["name"].startswith("figure") else ""
    return [figure for figure in content["figures"] if figure["file"] != overview]


def picture(name: str, file: str) -> str:
    return file if file.startswith(name) else f"{name}-{file}"


def number(value: dict[str, Any] | None, digits: int) -> str:
    """Mean ± standard deviation."""
    if value is None or value["mean"] is None:
        return "–"
    return f"{value['mean']:.{digits}f}" + ("" if value["std"] is None else f" ± {value['std']:.{digits}f}")


def table(content: dict[str, Any]) -> list[str]:
    """Each column twice where something is published for it."""
    columns: list[tuple[str, str]] = []
    for column in content["columns"]:
        told = any(row["cells"][column]["published"] for row in content["rows"])
        columns += [(column, "published"), (column, "measured")] if told else [(column, "measured")]
    words = {"published": "published", "measured": "here"}
    heads = ["", *(f"{column}: {words[what]}" for column, what in columns), "clean data", "settings tried"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    digits = 1 if "%" in content["unit"] else 3
    for row in content["rows"]:
        cells = [
            number(row["cells"][column][what], 1 if what == "published" and digits == 1 else digits)
            + ("°" if what == "measured" and row["cells"][column]["optimistic"] else "")
            for column, what in columns
        ]
        title = row["row"] + ("" if row["in_paper"] else " †")
        lines.append("| " + " | ".join([title, *cells, row["clean_data"], row["tuning_budget"]]) + " |")
    signs = (
        ["† not in the paper, here for a fair comparison."] if any(not r["in_paper"] for r in content["rows"]) else []
    )
    if any(cell["optimistic"] for row in content["rows"] for cell in row["cells"].values()):
        signs.append("° optimistic: on rows that have also tuned the run.")
    return [*lines, "", " ".join([f"{content['unit']}, mean ± standard deviation.", *signs])]


def verdicts(content: dict[str, Any]) -> list[str]:
    lines = ["| claim | published | measured here | |", "|---|---|---|---|"]
    for claim in content["claims"]:
        cells = (claim["text"], claim["published"] or "in words", claim["measured"], claim["verdict"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def page() -> str:
    found = {name: json.loads(result_file(name).read_text()) for name in ORDER if result_file(name).exists()}
    seeds = len(next(iter(found.values()))["seeds"])
    parts = [HEAD.format(seeds=seeds, names=" ".join(found)), ""]
    parts += ["| | " + " | ".join(VERDICTS) + " |", "|---" * 4 + "|"]
    for name, content in found.items():
        count = Counter(claim["verdict"] for claim in content["claims"])
        parts.append(f"| [{name}](#{name}) | " + " | ".join(str(count[verdict]) for verdict in VERDICTS) + " |")
    for name, content in found.items():
        parts += ["", f"## {name}", "", f"{content['title']}.", ""]
        if content["rows"]:
            parts += [*table(content), ""]
        if content["claims"]:
            parts += [*verdicts(content), ""]
        for figure in shown(content):
            parts += [f"![{figure['caption']}](paper-cpu/{picture(name, figure['file'])})", ""]
            if figure["file"] != f"{name}.png":
                parts += [figure["caption"], ""]
        machine = content["environment"]
        parts.append(
            f"{machine['cpu']['model']}, torch {machine['torch']}; `benchmarks/results/{result_file(name).name}` has "
            "every run, its config, and what differs from the paper."
        )
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, help="folder of the runs, --out of fastmeta reproduce")
    args = parser.parse_args()
    if args.out is not None:
        take(args.out)
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
