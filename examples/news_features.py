"""Texts with two columns of labels as an .npz of features, which `fastmeta train --dataset npz:FILE` takes.

    python examples/news_features.py samples10000valMed.csv samplesTest.csv data/noisyag-news.npz

Each text becomes 256 numbers: TF-IDF of 20,000 words at most, singular vectors, length one. The CSV files are those of
NoisyAG-News (github.com/hhf-hd/NoisyAG-News, folder dataset): columns `text`, `label` (by people) and `gt` (right).
"""

import csv
import sys
from pathlib import Path

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

CLASSES = ["World", "Sports", "Business", "Sci/Tech"]


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], *(np.array([int(row[name]) for row in rows]) for name in ("label", "gt"))


def features(train, test, size=256):
    """float32 (N, size) and (T, size); words and singular vectors are those of the training texts."""
    words = TfidfVectorizer(sublinear_tf=True, min_df=3, max_features=20000, stop_words="english").fit(train)
    x = words.transform(train)
    svd = TruncatedSVD(min(size, x.shape[1]), random_state=0).fit(x)
    found = svd.transform(x), svd.transform(words.transform(test))
    return tuple((v / (np.linalg.norm(v, axis=1, keepdims=True) + 1e-6)).astype(np.float32) for v in found)


def main(train_file, test_file, out):
    (train, y_train, y_true), (test, _, y_test) = read(train_file), read(test_file)
    x_train, x_test = features(train, test)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, x_train=x_train, y_train=y_train, y_true=y_true, x_test=x_test, y_test=y_test, class_names=CLASSES)
    print(f"{out}: {len(train):,} and {len(test):,} texts as {x_train.shape[1]} numbers")


if __name__ == "__main__":
    main(*sys.argv[1:])
