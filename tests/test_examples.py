"""The examples run and reach what they say."""

import importlib.util
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fastmeta import recipes, train

EXAMPLES = Path(__file__).parents[1] / "examples"


def figures(text):
    return [float(number) for number in re.findall(r"([\d.]+)%", text)]


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def test_the_loop_prints_what_it_reaches(capsys):
    pytest.importorskip("sklearn")
    runpy.run_path(str(EXAMPLES / "loop.py"), run_name="__main__")
    plain, learned = map(figures, capsys.readouterr().out.splitlines())
    assert learned[0] > plain[0] + 3  # of the test images
    assert learned[1] > plain[1] + 15  # of the labels


def test_hugging_face_learns_labels(capsys):
    pytest.importorskip("transformers", reason="transformers is not installed")
    step = load("hugging_face").main()
    accuracy, given, learned = figures(capsys.readouterr().out.splitlines()[-1])
    assert accuracy > given + 10
    assert learned > given + 8
    assert step.steps == 12 * 12


def test_a_sharded_model_learns_labels(capsys):
    """On one rank; two get the same batches. In a process that has no group yet."""
    load("fsdp").main()
    given, learned = figures(capsys.readouterr().out.splitlines()[-1])
    assert learned > given + 10


@pytest.fixture
def example():
    pytest.importorskip("lightning", reason="lightning is not installed")
    return load("lightning_loop")


def test_lightning_learns_labels(example, capsys):
    module = example.main(epochs=8)
    given, learned = figures(capsys.readouterr().out.splitlines()[-1])
    assert learned > given + 5
    assert module.trainer.global_step == module.step.steps == 80  # Lightning counts its steps, too


def test_lightning_goes_on_bitwise_from_a_checkpoint(example, tmp_path):
    torch.manual_seed(0)
    means, y = 3 * torch.randn(4, 16), torch.randint(4, (120,))
    x = means[y] + torch.randn(120, 16)
    noisy = torch.where(torch.arange(100) % 4 == 0, (y[:100] + 1) % 4, y[:100])

    def fit(epochs, seed, **options):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
        module = example.LearnedLabels(model, noisy, num_classes=4)
        loaders = {
            "train": DataLoader(TensorDataset(x[:100], torch.arange(100)), 20),
            "meta": DataLoader(TensorDataset(x[100:], y[100:]), 10),
        }
        silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = example.L.Trainer(max_epochs=epochs, default_root_dir=tmp_path, **silent)
        trainer.fit(module, example.CombinedLoader(loaders, "max_size_cycle"), loaders["meta"], **options)
        assert trainer.global_step == module.step.steps == 5 * epochs
        return module, trainer.checkpoint_callback.best_model_path

    whole, _ = fit(4, seed=1)
    half, path = fit(2, seed=1)
    resumed, last = fit(4, seed=2, ckpt_path=path)  # whatever it was made of
    assert not torch.equal(half.labels.label_logits, whole.labels.label_logits)
    assert torch.equal(resumed.labels.label_logits, whole.labels.label_logits)
    for mine, its in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, its)
    # for use alone
    loaded = example.LearnedLabels.load_from_checkpoint(last, model=half.model, given=noisy, num_classes=4)
    assert torch.equal(loaded.labels.label_logits, whole.labels.label_logits)


def test_texts_become_features_that_a_run_takes(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    words = [["goal", "match", "team"], ["shares", "profit", "bank"]]
    lines = ["label,gt,text,group"]
    for i in range(40):
        right = i % 2
        text = " ".join(words[right]) + f', ""{"abcd"[i % 4]}""'
        lines.append(f'{right if i % 5 else 1 - right},{right},"{text}",A')
    for name in ("train.csv", "test.csv"):
        Path(name).write_text("\n".join(lines) + "\n")
    load("news_features").main("train.csv", "test.csv", "data/news.npz")
    with np.load("data/news.npz") as made:
        assert made["x_train"].shape == made["x_test"].shape == (40, 6)
        assert made["x_train"].dtype == np.float32
        assert np.linalg.norm(made["x_train"], axis=1) == pytest.approx(np.ones(40), abs=1e-4)
        assert (made["y_train"] != made["y_true"]).sum() == 8
    over = {"dataset": "npz:data/news.npz", "noise": "file:data/news.npz:y_train", "data": {"meta_count": 4}}
    config = recipes.read("noisyag-news").config("onehot", epochs=2, threads=1, out="run", **over)
    run = train(config)
    assert run.summary["noise_rate"] == pytest.approx(0.2, abs=0.06)
    assert run.summary["test_accuracy_last"] > 0.7
