"""oneDNN's linear layers against torch's: values and gradients."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from agentrl.engines.hf_device import onednn_works  # noqa: E402
from agentrl.train.linear import fast_linear  # noqa: E402

pytestmark = pytest.mark.skipif(not onednn_works(torch.float32), reason="no oneDNN here")


@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_torch(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 320, bias=bias), nn.SiLU(), nn.Linear(320, 256, bias=bias))
    plain = copy.deepcopy(model)
    x = torch.randn(2, 7, 256)
    xs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    expected = plain(xs[0])
    with fast_linear(model):
        y = model(xs[1])
        assert "_Linear" in type(y.grad_fn).__name__
        for made in (expected, y):
            made.pow(2).mean().backward()
    assert torch.allclose(y, expected, atol=1e-5)
    assert torch.allclose(xs[1].grad, xs[0].grad, atol=1e-6)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
    assert all("forward" not in vars(module) for module in model)


def test_small_layers_frozen_weights_and_16_bits_go_on_as_before() -> None:
    small, large = nn.Linear(16, 16), nn.Linear(256, 256)
    large.weight.requires_grad_(False)
    model = nn.ModuleList([small, large])
    x = torch.randn(2, 256, requires_grad=True)
    with fast_linear(model):
        assert "forward" not in vars(small)
        large(x).sum().backward()
        assert large.weight.grad is None
        assert torch.allclose(x.grad, large.weight.sum(0).expand(2, -1), atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert large(x).dtype == torch.bfloat16
