"""A step of every method with its encoders compiled, as on a GPU:
one graph a block and size, for sizes that do not change.

The compiler's backend here only traces, which takes seconds;
graphs, their breaks and their guards are those of any backend.
"""

import pytest
import torch
from torch import nn

from pretrain.encoders import pooled
from pretrain.training.features import pooled_features
from pretrain.training.recipe import compile_blocks
from tests.pretrain.test_fake_cuda import NAMES, method_of

SLOW = pytest.mark.slow
# a small case in every run: crops of two sizes, a student and a teacher
CASES = [pytest.param(name, marks=[] if name == "dino" else SLOW) for name in NAMES]


class Compiler:
    """Takes the place of `nn.Module.compile` and counts graphs.

    Attributes:
        num_graphs: that were compiled.
        symbolic: sizes in them that stand for any number.
    """

    def __init__(self, monkeypatch):
        import torch._dynamo.utils as dynamo

        torch._dynamo.reset()
        dynamo.counters.clear()
        self.num_graphs, self.symbolic, self._counters = 0, [], dynamo.counters
        compiler = self

        def compile_module(module, **options):
            module._compiled_call_impl = torch.compile(module._call_impl, backend=compiler.take, **options)

        monkeypatch.setattr(nn.Module, "compile", compile_module)

    @property
    def num_breaks(self):
        return sum(self._counters["graph_break"].values())

    def take(self, graph, inputs):
        from torch._dynamo.backends.debugging import aot_eager

        self.num_graphs += 1
        for node in graph.graph.find_nodes(op="placeholder"):
            value = node.meta.get("example_value")
            sizes = [value] if isinstance(value, torch.SymInt) else list(getattr(value, "shape", []))
            self.symbolic += [str(size) for size in sizes if isinstance(size, torch.SymInt)]
        return aot_eager(graph, inputs)


def views_of(method):
    sizes = [64] * method.num_views if method.num_views else [64, 64, 32, 32, 32, 32]
    return [torch.randn(4, 3, size, size) for size in sizes]


@pytest.mark.parametrize("name", CASES)
def test_no_graph_breaks_and_none_is_compiled_after_the_third_step(name, monkeypatch):
    method, compiler = method_of(name), Compiler(monkeypatch)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.01)
    compile_blocks(method)
    graphs = []

    def step(number):
        with torch.autocast("cpu", torch.bfloat16):
            loss = method(views_of(method)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(number, 10)
        graphs.append(compiler.num_graphs)

    for number in range(4):
        step(number)
    assert graphs[0] > 0 and graphs[2] == graphs[3]
    assert compiler.num_breaks == 0
    assert not compiler.symbolic

    # -- an evaluation in between, whose last batch has fewer images: graphs of its own, once
    images = torch.randn(4, 3, 64, 64)
    features = []
    for num in (4, 4, 3, 1):
        method.eval()
        with torch.no_grad():
            features.append(pooled_features(method.exported, images[:num], 4))
        graphs.append(compiler.num_graphs)
        method.train()
    assert graphs[-4:] == [graphs[-4]] * 4
    torch.testing.assert_close(features[2], features[0][:3])
    step(4)
    step(5)
    assert graphs[-1] == graphs[-2] == graphs[-3] and compiler.num_breaks == 0


def test_features_of_a_batch_filled_up_with_zeros_are_those_of_its_images():
    encoder = method_of("simclr").encoder.eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        wanted = pooled(encoder(images))
        assert torch.equal(pooled_features(encoder, images, 3), wanted)
        torch.testing.assert_close(pooled_features(encoder, images, 8), wanted)
        with torch.autocast("cpu", torch.bfloat16):
            short = pooled_features(encoder, images, 8)
    assert short.dtype == torch.float32 and 0 < (short - wanted).abs().max() < 0.1
