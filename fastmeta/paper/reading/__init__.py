"""What is read of runs that learned labels: numbers and figures, from run directories and their trajectories alone."""

from fastmeta.paper.reading.draw_curves import Example, class_figure, correctness_figure, entropy_figure
from fastmeta.paper.reading.draw_sheet import Sample, samples, sheet
from fastmeta.paper.reading.label_entropy import CLEAN, CORRECTED, UNCORRECTED, Entropies, entropies
from fastmeta.paper.reading.learned_run import LearnedRun, read_run
from fastmeta.paper.reading.over_classes import (
    ClassCurves,
    class_curves,
    easiest_middle_hardest,
    mean_curves,
    smoothing,
    smoothing_follows_difficulty,
)
from fastmeta.paper.reading.repeats import curves_repeat, rows_repeat
from fastmeta.paper.reading.run_images import pictures
from fastmeta.paper.reading.superclass_share import TOP, Kinship, kinship, likeliest_others, most_moved
from fastmeta.paper.reading.top_shares import Correctness, correctness, in_top, mean_probs

__all__ = [
    "CLEAN",
    "CORRECTED",
    "TOP",
    "UNCORRECTED",
    "ClassCurves",
    "Correctness",
    "Entropies",
    "Example",
    "Kinship",
    "LearnedRun",
    "Sample",
    "class_curves",
    "class_figure",
    "correctness",
    "correctness_figure",
    "curves_repeat",
    "easiest_middle_hardest",
    "entropies",
    "entropy_figure",
    "in_top",
    "kinship",
    "likeliest_others",
    "mean_curves",
    "mean_probs",
    "most_moved",
    "pictures",
    "read_run",
    "rows_repeat",
    "samples",
    "sheet",
    "smoothing",
    "smoothing_follows_difficulty",
]
