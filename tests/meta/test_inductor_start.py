"""What inductor does anew in every process is left out where it comes to the same."""

import copy
import logging
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from fastmeta.meta.engines import inductor_start
from fastmeta.meta.engines.inductor_start import headers_for_compilers, lean_keys


def test_headers_are_looked_for_where_a_library_is_missing(tmp_path, monkeypatch):
    from torch._inductor import codecache

    monkeypatch.setattr(codecache, "_precompile_header", lambda header: f"compiled {header}")
    usual, asked = codecache._precompile_header, str(tmp_path / "cxyz.main.cpp")

    def load(main_path):  # as inductor's own, which has the path of the source in a local
        return codecache._precompile_header("cpu.h")

    with headers_for_compilers():
        assert load(asked) == "compiled cpu.h"
        (tmp_path / "cxyz.main.so").touch()
        assert load(asked) == ""
        assert codecache._precompile_header("cpu.h") == "compiled cpu.h"  # by others, too
    assert codecache._precompile_header is usual


@pytest.mark.slow
def test_a_graph_that_was_compiled_without_is_found(tmp_path, monkeypatch):
    """So the keys are those that inductor makes for itself."""
    from torch._dynamo.utils import counters
    from torch._inductor import codecache
    from torch._inductor.runtime import triton_compat

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x, net = torch.ones(8, 4), nn.Linear(4, 3)

    def compiled():
        graph = make_fx(lambda x, *p: torch.func.functional_call(net, dict(zip(names, p, strict=True)), x).sin())
        codecache.CacheBase.get_system.cache_clear()
        counters.clear()
        inputs = [x, *(p.detach() for p in net.parameters())]
        made = torch._inductor.standalone_compile(graph(*inputs), inputs, dynamic_shapes="from_example_inputs")
        return made(*inputs), counters["inductor"]["fxgraph_cache_hit"], codecache.CacheBase.get_system()

    names = [name for name, _ in net.named_parameters()]
    usual, hit, system = compiled()
    assert not hit
    if not torch.cuda.is_available():  # nobody looks at it, who needs it not
        for owner in (codecache, triton_compat):
            if hasattr(owner, "triton_key"):
                monkeypatch.setattr(owner, "triton_key", None)
    with lean_keys():
        lean, hit, lean_system = compiled()
    assert hit
    assert lean_system == system
    assert torch.equal(lean, usual)


def test_what_a_key_is_made_of_is_told_to_the_log(caplog):
    from torch._inductor import codecache

    usual = codecache.FxGraphCachePickler.debug_lines
    with lean_keys():
        assert codecache.FxGraphCachePickler.debug_lines(None, None) == []
    assert codecache.FxGraphCachePickler.debug_lines is usual
    caplog.set_level(logging.DEBUG, "torch._functorch._aot_autograd.autograd_cache")
    with lean_keys():
        assert codecache.FxGraphCachePickler.debug_lines is usual


def test_a_trial_that_went_well_is_not_run_again(tmp_path):
    library, trials = str(tmp_path / "trial.so"), inductor_start._Trials()
    command = [sys.executable, "-c", library]
    with pytest.raises(subprocess.CalledProcessError):  # there is none
        trials.check_call(command, stderr=trials.DEVNULL)
    assert not list(tmp_path.iterdir())
    command[0] = "true"
    assert trials.check_call(command, cwd=tmp_path) == 0
    command[0] = "false"
    assert trials.check_call(command, cwd=tmp_path) == 0


def test_templates_are_compiled_when_one_is_used():
    """In a process of its own: what is imported stays."""
    script = """
import jinja2
made, usual = [], jinja2.Environment.from_string
jinja2.Environment.from_string = lambda self, source: made.append(source) or usual(self, source)
from fastmeta.meta.engines.inductor_start import import_inductor
import_inductor()
from torch._inductor.codegen.common import KernelTemplate
from torch._inductor.kernel.mm import mm_template
assert not made
assert callable(mm_template.template.render) and len(made) == 1
assert mm_template.template.root_render_func and len(made) == 1
assert isinstance(vars(KernelTemplate)["_template_from_string"], staticmethod)
assert KernelTemplate._template_from_string("{{ x }}").render(x=3) == "3"
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_template_can_be_copied_and_tells_of_its_errors():
    def compiled(source):
        raise SyntaxError(source)

    template = copy.copy(inductor_start._Template(compiled, "{% if"))
    with pytest.raises(SyntaxError, match="if"):
        template.render()
