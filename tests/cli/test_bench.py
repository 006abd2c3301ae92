"""``fastmeta bench`` as a command: files, one-line errors, help."""

import json

import pytest
import torch

import fastmeta.cli
from fastmeta.cli.bench import main

TINY = {"model": "mlp", "batch": 4, "meta-batch": 6, "classes": 3, "samples": 10, "rounds": 2, "input-shape": 2}
TINY_FLAGS = [f"--{name}={value}" for name, value in TINY.items()]


@pytest.fixture(autouse=True)
def _same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_step_writes_json(tmp_path, capsys):
    path = tmp_path / "step.json"
    flags = ["step", *TINY_FLAGS, "--variants", "sgd", "fastmeta", "--threads", "1", "--json", str(path)]
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert out.index("forward F") < out.index("x naive")
    assert max(map(len, out.replace(str(tmp_path), "").splitlines())) <= 80
    content = json.loads(path.read_text())
    assert content["kind"] == "step"
    assert content["environment"]["cpu"]["threads"] == content["config"]["threads"] == 1
    assert content["environment"]["command"].startswith("fastmeta bench step --model=mlp")
    assert [row["variant"] for row in content["rows"]] == ["sgd", "fastmeta"]
    assert content["rounds"] == 2


def test_ops_prints_a_table(capsys):
    flags = ["ops", "--ops", "row_dot", "--sizes", "8x5", "--dtype", "float32", "--no-compile", "--seconds", "0.001"]
    assert main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "row_dot float32" in lines
    assert max(map(len, lines)) <= 80


def test_a_factory_beside_the_caller_is_found(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_net.py").write_text("import torch\ndef make(num_classes): return torch.nn.Linear(2, num_classes)\n")
    monkeypatch.chdir(tmp_path)
    flags = [*TINY_FLAGS, "--model", "my_net:make", "--variants", "sgd", "--no-memory"]
    assert fastmeta.cli.main(["bench", "step", *flags]) == 0
    assert "my_net:make, 9 parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("step --model resnet19", "unknown model 'resnet19': expected one of resnet18"),
        ("step --model nowhere:net", "cannot import 'nowhere' for 'nowhere:net'"),
        ("step --batch 0", "batch must be positive, got 0"),
        ("step --classes 1", "classes must be at least 2, got 1"),
        ("step --samples 3 --batch 4", "samples must be at least batch (4), got 3"),
        ("step --variants sgd nothing", "unknown variant 'nothing': expected some of default, main, peers, all, sgd"),
        ("step --dtype int8", "argument --dtype: invalid choice: 'int8'"),
        ("step --inputs nowhere:f", "cannot import 'nowhere'"),
        ("step --threads 0", "argument --threads: must be at least 1, got 0"),
        ("step --input-shape 3,x", "argument --input-shape: must look like N,N,N, got '3,x'"),
        ("step --json .", "--json must name a file, got the directory ."),
        ("step --json /dev/null/a.json", "cannot write /dev/null/a.json: "),
        ("ops --ops nothing", "unknown operation 'nothing': expected some of instance_loss"),
        ("ops --dtype int8", "unknown dtype 'int8': expected some of float64"),
        ("ops --sizes 128", "argument --sizes: must look like NxN, got '128'"),
        ("ops --sizes 128x1", "sizes must be n x C with n >= 1 and C >= 2, got 128x1"),
        ("ops --seconds 0", "--seconds: must be above 0 and finite, got 0"),
        ("", "the following arguments are required: ops|step"),
        ("ops --device cuda", "finds no CUDA device"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(flags, message, capsys):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    try:
        code = main(flags.split())
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    assert code == 2
    assert message in err
    assert err.startswith("fastmeta bench")
    assert err.count("\n") == 1
    assert out == ""


def test_where_no_variant_can_run(capsys):
    line = "step --model torchvision:resnet18 --input-shape 3,2 --variants sgd --batch 2 --no-check --seconds 0.1"
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert "skipped sgd: RuntimeError: Given groups=1" in out
    assert err == "fastmeta bench: nothing was timed, for the reasons above\n"


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ([], "Operations and whole steps, timed in turns, medians."),
        (["ops"], "Each fused operation against its plain-torch twin, eager and compiled."),
        (["step"], "The meta step against plain SGD steps and what one would write instead."),
        (["approx"], "What each approximation of the step saves, and how far it is from exact."),
    ],
)
def test_help(command, what, capsys):
    with pytest.raises(SystemExit) as done:
        main([*command, "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(" ".join(["usage: fastmeta bench", *command]))
    assert what in " ".join(text.split())
