"""What the labels of a training set may truly be, given the network, the clean rows, and the labels as given."""

from fastmeta.posterior.label_posterior import FOLDS, MARGIN, LabelEstimate, LabelPosterior
from fastmeta.posterior.noise_model import fit_transition, posterior

__all__ = ["FOLDS", "MARGIN", "LabelEstimate", "LabelPosterior", "fit_transition", "posterior"]
