"""``fastmeta.LabelLearner``: the trainer in scikit-learn's manner, for arrays."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(f"LabelLearner needs scikit-learn from 1.6 on: pip install -U scikit-learn ({error})") from error

from fastmeta._text import shown
from fastmeta.data import Features, Images, InputError, Settings, Source
from fastmeta.data.hold_out import held_out
from fastmeta.data.npz_file import NpzFile
from fastmeta.functional.call import call_model, pick_logits
from fastmeta.functional.evaluation import evaluation
from fastmeta.training import Interrupted, Listener, TrainConfig, train

#: rows of a forward without a graph
_ROWS = 1024
#: keys of a config that parameters and arguments of the estimator stand for, or that have no meaning here
_OWN = ("dataset", "noise", "model", "epochs", "seed", "device", "out", "baselines")
_OWN_OF_DATA = (
    *("meta_fraction", "meta_count", "meta_balanced", "folds", "fold", "val_fraction", "meta_is_train"),
    *("given", "truth", "root", "download", "superclasses", "workers"),
)
#: what `random_state` of None or a generator is drawn below
_SEEDS = 2**31


class LabelLearner(ClassifierMixin, BaseEstimator):
    """A classifier that corrects the labels that it is trained on, by a small clean set.

        learner = fastmeta.LabelLearner().fit(X, y, X_clean, y_clean)
        learner.labels_, learner.label_quality_, learner.predict(X_test)

    It is :func:`fastmeta.train` with its defaults (labels estimated by ``labels.update = "posterior"``) on arrays, with
    class names of any kind, without files that stay.

    Args:
        model: name of a network, such as ``"mlp"`` or ``"resnet18"``, or a torch module that takes a batch of samples
            and gives logits (n, C), of which a copy is trained; None: an MLP for features, a convolutional network for
            images.
        epochs: passes over the training rows.
        clean_fraction: share of each class that is held out as the clean set where `fit` is given none. These labels
            are trusted as they are, with a warning; None refuses to fit without a clean set.
        random_state: of the initial weights, the order of batches and the hold-out. An int gives the same result each
            time; None and a ``numpy.random.RandomState`` draw a seed at each fit.
        device: auto, cpu, cuda or cuda:N.
        config: further values of :class:`fastmeta.TrainConfig`, nested as in its TOML:
            ``{"optim": {"lr": 0.05}, "data": {"batch_size": 32}}``. With ``finetune_steps`` predictions are of the copy
            that was fine-tuned.
        verbose: print a line per epoch.

    Attributes:
        classes_: (C,) the classes, sorted.
        labels_: (n,) the learned class of each row of X, in the order and of the kind of y. Learned labels are
            in-sample: they are of the rows that the network was trained on.
        label_quality_: (n,) float64 in [0, 1], how far the given label may be believed. The rows
            with the lowest look wrong. Rows that were held out have 1.
        clean_index_: rows of X that were held out as the clean set, whose labels are as given; empty where `fit` was
            given a clean set.
        model_: the trained network, a torch module in evaluation mode.
        summary_: figures of the run, as in its summary.json.
        n_features_in_: X.shape[1]. feature_names_in_: where X is a frame with names.
    """

    def __init__(
        self,
        model: Any = None,
        *,
        epochs: int = 100,
        clean_fraction: float | None = 0.2,
        random_state: Any = 0,
        device: str = "auto",
        config: Mapping[str, Any] | None = None,
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.epochs = epochs
        self.clean_fraction = clean_fraction
        self.random_state = random_state
        self.device = device
        self.config = config
        self.verbose = verbose

    def fit(self, X: Any, y: Any, X_clean: Any = None, y_clean: Any = None) -> LabelLearner:
        """Train on (X, y), whose labels may be wrong, and learn them by (X_clean, y_clean), whose labels are right.

        Args:
            X: (n, d) numbers, taken as float32 and standardised; or uint8 images (n, height, width[, channels]); or
                floats (n, ...) for a model of your own.
            y: (n,) classes: numbers, texts, booleans.
            X_clean, y_clean: (m, ...), (m,) the clean set; without it `clean_fraction` of each class is held out.

        Raises:
            ValueError: what cannot be trained on, in one line (also as :class:`fastmeta.training.InputError`).
            fastmeta.training.TrainingError: training has diverged.
        """
        X, y = self._checked(X, y, reset=True)
        if self.config is not None and not isinstance(self.config, Mapping):
            raise InputError(
                f"config must be a mapping of values, nested as in TOML, or None, got {shown(self.config)}"
            )
        clean = X_clean is not None
        if clean != (y_clean is not None):
            here, gone = ("X_clean", "y_clean") if clean else ("y_clean", "X_clean")
            raise ValueError(f"{here} comes without {gone}; give both, or neither to hold out a part of X")
        if clean:
            X_clean, y_clean = self._checked(X_clean, y_clean, reset=False, name="_clean")
            if (y.dtype.kind in "OUS") != (y_clean.dtype.kind in "OUS"):
                kinds = ["texts" if v.dtype.kind in "OUS" else "numbers" for v in (y, y_clean)]
                raise ValueError(f"y holds {kinds[0]}, y_clean {kinds[1]}; write classes in one way in both")
            _check_alike("X_clean", X_clean, X.shape[1:], X.dtype, "X")
        both = np.concatenate([y, y_clean]) if clean else y
        self.classes_, numbers = np.unique(both, return_inverse=True)
        if len(np.unique(y)) < 2:
            raise ValueError(f"y holds one class only ({shown(y[0])}); labels are learned from two classes on")
        seed = self._seed()
        given = numbers[: len(y)]
        self.clean_index_ = np.empty(0, np.int64) if clean else self._held_out(given, seed)
        arrays: dict[str, Any] = {"x_train": X, "y_train": given, "class_names": list(map(str, self.classes_))}
        arrays |= {"x_meta": X_clean, "y_meta": numbers[len(y) :]} if clean else {"meta_index": self.clean_index_}
        config = self._train_config(seed)
        module = self.model if isinstance(self.model, torch.nn.Module) else None
        seen = _Seen(self.verbose)
        with tempfile.TemporaryDirectory(prefix="fastmeta-") as folder:
            values = {**config, "out": str(Path(folder, "run"))}
            try:
                # what is named in Python is the caller's own
                of_run = TrainConfig.from_mapping(values, source="LabelLearner").trusted()
                run = train(of_run, model=module, data=arrays, listener=seen)
            except Interrupted:  # whose way to go on leads to a folder that is gone
                raise KeyboardInterrupt from None
            with NpzFile(run.path / "labels.npz") as file:
                table = file.read({k: file.declared(k) for k in ("index", "learned", "label_quality")})
        self.labels_, self.label_quality_ = self.classes_[given], np.ones(len(y))
        self.labels_[table["index"]] = self.classes_[table["learned"]]
        self.label_quality_[table["index"]] = table["label_quality"].astype(np.float64).clip(0, 1)
        self.model_ = (run.finetuned or run.model).to(seen.device).eval()
        self.summary_ = run.summary
        self._scaling, self._form = seen.scaling, (X.shape[1:], X.dtype)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, C) float64, the network's probability of each of `classes_`."""
        check_is_fitted(self)
        X = self._samples(X, reset=False)
        _check_alike("X", X, *self._form, "fit")
        device = next(self.model_.parameters()).device
        source = _source(X).placed(Settings(), device, None, self._scaling)
        batches = torch.arange(len(X), device=device).split(_ROWS)
        with torch.no_grad(), evaluation(self.model_):
            logits = [pick_logits(call_model(self.model_, x)) for x in source.read(batches, device)]
        return torch.cat(logits).double().softmax(1).cpu().numpy()

    def predict(self, X: Any) -> np.ndarray:
        """(n,) the likeliest class of each sample."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(1)]

    # -- checks -------------------------------------------------------------------------------------------

    def _checked(self, X: Any, y: Any, *, reset: bool, name: str = "") -> tuple[np.ndarray, np.ndarray]:
        _check_there(y, f"y{name}")
        X, y = validate_data(self, X, y, reset=reset, allow_nd=True)
        check_classification_targets(y)
        return _numbers(X, f"X{name}"), y

    def _samples(self, X: Any, *, reset: bool) -> np.ndarray:
        return _numbers(validate_data(self, X, reset=reset, allow_nd=True), "X")

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer) and not isinstance(self.random_state, bool):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(_SEEDS))

    def _held_out(self, given: np.ndarray, seed: int) -> np.ndarray:
        way = "give X_clean and y_clean, a few samples of each class whose labels somebody has checked"
        if self.clean_fraction is None:
            raise ValueError(f"no clean set is given, and clean_fraction is None; {way}")
        if not 0 < self.clean_fraction < 1:
            raise ValueError(f"clean_fraction must lie strictly between 0 and 1, got {shown(self.clean_fraction)}")
        rows = held_out(given, self.clean_fraction, seed)
        if not len(rows):
            raise ValueError(f"no clean set can be held out: no class has two samples ({len(given)} in all); {way}")
        warnings.warn(
            f"no clean set is given: {len(rows):,} rows of X (clean_index_) are held out as one, and their labels are "
            f"trusted as they are; {way}",
            stacklevel=3,
        )
        return rows

    def _train_config(self, seed: int) -> dict[str, Any]:
        """As nested mappings. InputError for a key that the estimator has a parameter of its own for."""
        config = dict(self.config or {})
        data = config.get("data")
        own = [k for k in config if k in _OWN]
        own += [f"data.{k}" for k in data if k in _OWN_OF_DATA] if isinstance(data, Mapping) else []
        if own:
            raise InputError(f"config names {own[0]}, which LabelLearner sets itself; its own parameters are for that")
        config |= {"epochs": self.epochs, "seed": seed, "device": self.device, "baselines": "none", "noise": "none"}
        if self.model is not None and not isinstance(self.model, str | torch.nn.Module):
            raise InputError(f"model must be a name, a torch.nn.Module or None, got {shown(self.model)}")
        return config | ({"model": self.model} if isinstance(self.model, str) else {})


class _Seen(Listener):
    """What a run shows: where it trains, how its samples are scaled, and lines where they are wanted."""

    scaling: Source
    device: torch.device

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose

    def stage(self, stage: Any) -> None:
        source, self.device = stage.data.source, stage.data.device
        # of one row, which is enough to scale others alike
        self.scaling = source.take(np.zeros(1, np.int64)).placed(Settings(), self.device, None, source)

    def epoch(self, stage: Any, record: Mapping[str, Any]) -> None:
        if self.verbose:
            loss, changed = record.get("train_loss"), record.get("labels_changed")
            told = "–" if loss is None else f"{loss:.3f}"
            print(f"epoch {record['epoch']}: loss {told}, labels changed {changed if changed is not None else '–'}")


def _check_there(y: Any, name: str) -> None:
    """ValueError that names the first row without a label, where labels are objects: NumPy cannot sort None."""
    values = y.to_numpy() if hasattr(y, "to_numpy") else y
    values = values.tolist() if isinstance(values, np.ndarray) and values.dtype == object else values
    if not isinstance(values, list | tuple):
        return
    absent = [row for row, label in enumerate(values) if _is_absent(label)]
    if absent:
        raise ValueError(f"{name} has no label in row {absent[0]}, in {len(absent):,} row(s) in all; drop these rows")


def _is_absent(label: Any) -> bool:
    """None, NaN, or pandas' NA, of which no comparison is true or false."""
    if label is None:
        return True
    try:
        return bool(label != label)
    except TypeError:
        return True
    except ValueError:  # of an array, which somebody else refuses
        return False


def _check_alike(name: str, X: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, other: str) -> None:
    """ValueError unless samples are of this shape, and images where these are."""
    if X.shape[1:] != shape:
        raise ValueError(f"{name} has samples of shape {X.shape[1:]}, expected {shape}, as in {other}")
    if X.dtype != dtype:
        kinds = ["uint8 images" if d == np.uint8 else "numbers" for d in (X.dtype, dtype)]
        raise ValueError(f"{name} holds {kinds[0]}, expected {kinds[1]}, as in {other}; bring both to one dtype")


def _source(X: np.ndarray) -> Source:
    nothing = np.zeros(len(X), np.int64)
    if X.dtype == np.uint8:
        return Images(np.ascontiguousarray(X[..., None] if X.ndim == 3 else X), nothing)
    return Features(np.ascontiguousarray(X), nothing)


def _numbers(X: np.ndarray, name: str) -> np.ndarray:
    """Images as they are, all else as float32. ValueError for a number that float32 does not hold."""
    if X.dtype == np.uint8 and X.ndim > 2:
        return X
    with np.errstate(over="ignore"):
        found = X.astype(np.float32)
    if not np.isfinite(found).all():
        row = int(np.argwhere(~np.isfinite(found))[0][0])
        raise ValueError(f"{name} holds a number in row {row} that is too large for float32; rescale that column")
    return found
