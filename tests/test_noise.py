"""The float64 twin: the floor below which a difference is rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from layerdiff import tiles
from layerdiff.capture import capture
from layerdiff.errors import ReferenceFailedError
from layerdiff.noise import floor_from, noise_floor
from tests.zoo.weights import fill, noise, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerdiff.model import Noise, Reference


class Function(nn.Module):
    def __init__(self, body: Callable[..., Tensor], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.inner = inner or nn.Identity()

    def forward(self, *args: Tensor) -> Tensor:
        return self.body(self.inner, *args)


def floor_of(model: nn.Module, *args: Tensor) -> tuple[Reference, dict[int, Noise]]:
    reference = capture(model, args, {})
    return reference, noise_floor(model, args, {}, reference)


def at_the_end(model: nn.Module, *args: Tensor) -> float:
    reference, floor = floor_of(model, *args)
    return floor[reference.outputs[""]].max_abs


def overwritten(inner: nn.Module, x: Tensor) -> Tensor:
    y = inner(x)
    y[:, 0] = 0
    y[:, 1:].mul_(3)
    return y.relu_().t().contiguous().view(-1) * 1


def scattered(inner: nn.Module, x: Tensor) -> Tensor:
    y = inner(x)
    y.index_put_((torch.tensor([0, 1]), torch.tensor([1, 2])), torch.tensor(7.0))
    y.scatter_(1, torch.tensor([[3], [2], [0]]), 5.0)
    return y.cumsum(0)


def swapped(inner: nn.Module, x: Tensor) -> Tensor:
    y = inner(x)
    left, right = y.chunk(2, 1)
    left.copy_(right * 2)
    return y + 1


@pytest.mark.parametrize("body", [overwritten, scattered, swapped])
def test_the_twin_follows_views_and_updates_in_place(body: Callable[..., Tensor]) -> None:
    model = fill(Function(body, nn.Linear(4, 4)))
    reference, floor = floor_of(model, 10 * noise("noise.views", 3, 4))
    assert 0 < floor[reference.outputs[""]].max_abs < 1e-4
    assert max(value.max_abs for value in floor.values()) < 1e-4


def test_a_model_that_updates_its_input_in_place_has_a_small_floor() -> None:
    model = Function(lambda _, x: x.sub_(3).div_(7))
    assert at_the_end(model, noise("noise.input", 3, 4)) < 1e-6


def test_work_that_is_exact_has_no_noise() -> None:
    def body(inner: nn.Module, ids: Tensor) -> Tensor:
        return inner(ids).sum(-1) * 2 + (ids % 5).float()

    table = nn.Embedding(9, 4)
    with torch.no_grad():
        table.weight.copy_(torch.arange(36).reshape(9, 4))
    _, floor = floor_of(Function(body, table), tokens("noise.ids", 9, 2, 6))
    assert floor
    assert all(value.max_abs == 0 for value in floor.values())


def test_noise_grows_with_depth() -> None:
    def body(inner: nn.Module, x: Tensor) -> Tensor:
        for _ in range(40):
            x = inner(x)
        return x

    model = Function(body, nn.Linear(16, 16, bias=False))
    with torch.no_grad():  # a rotation: it keeps the size of what it turns
        model.inner.weight.copy_(torch.linalg.qr(noise("noise.turn", 16, 16))[0])
    reference, floor = floor_of(model, noise("noise.deep", 8, 16))
    calls = [call for call in reference.calls if call.layer == "inner"]
    first, last = (floor[call.outputs[0]].rms for call in (calls[0], calls[-1]))
    assert last > 2 * first > 0


def test_every_floating_value_has_a_floor() -> None:
    model = fill(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(64, 3)))
    reference, floor = floor_of(model, noise("noise.net", 1, 3, 6, 6))
    computed = {v.index for v in reference.values if v.array is not None and v.array.dtype.kind == "f"}
    assert computed <= set(floor)


def test_a_cast_to_float32_that_is_written_into_the_model_stays_wide_in_the_twin() -> None:
    model = fill(Function(lambda inner, x: inner(x.float()).to(torch.float32).exp(), nn.Linear(4, 4)))
    floor = at_the_end(model, noise("noise.float", 3, 4).double())
    assert 0 < floor < 1e-4


def test_the_rounding_of_a_half_precision_stretch_is_noise() -> None:
    model = Function(lambda _, x: x.half().float() * 1)
    x = noise("noise.half", 50, 4)
    floor = at_the_end(model, x)
    assert floor == pytest.approx(float((x.half().double() - x.double()).abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_has_a_floor_of_its_own_size(dtype: torch.dtype) -> None:
    model = fill(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)))
    x = noise("noise.precision", 4, 8)
    wide, narrow = at_the_end(model, x), at_the_end(model.to(dtype), x.to(dtype))
    assert narrow > 100 * wide > 0


def test_a_recurrent_layer_has_a_floor() -> None:
    model = Function(lambda inner, x: inner(x)[0], fill(nn.LSTM(4, 5, num_layers=2, batch_first=True)))
    assert 0 < at_the_end(model, noise("noise.lstm", 2, 7, 4)) < 1e-5


def test_the_twin_draws_the_random_numbers_of_the_reference() -> None:
    def body(inner: nn.Module, x: Tensor) -> Tensor:
        return inner(x) + torch.rand_like(x) + torch.randn(4) + torch.bernoulli(torch.full_like(x, 0.5))

    model = fill(Function(body, nn.Linear(4, 4)))
    assert 0 < at_the_end(model, noise("noise.random", 3, 4)) < 1e-5


def test_dropout_in_train_mode_adds_no_noise() -> None:
    model = fill(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))).train()
    assert 0 < at_the_end(model, noise("noise.dropout", 4, 8)) < 1e-5


def test_a_branch_is_taken_as_the_reference_took_it() -> None:
    def body(inner: nn.Module, x: Tensor) -> Tensor:
        y = inner(x)
        return y * 2 if y.sum() > 0 else y - 1000

    model = fill(Function(body, nn.Linear(4, 4)))
    assert at_the_end(model, noise("noise.branch", 3, 4)) < 1e-4


def test_what_is_not_finite_is_left_out_of_the_floor() -> None:
    def body(inner: nn.Module, x: Tensor) -> Tensor:
        scores = inner(x).masked_fill(torch.eye(4, dtype=torch.bool), float("-inf"))
        return torch.cat([scores, scores.softmax(-1)])

    model = fill(Function(body, nn.Linear(4, 4)))
    assert 0 < at_the_end(model, noise("noise.mask", 4, 4)) < 1e-5


def test_the_twin_leaves_the_model_and_the_runtime_as_they_were() -> None:
    model = fill(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).train()
    before: dict[str, Any] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state, onednn = torch.get_rng_state(), torch._C._get_mkldnn_enabled()
    floor_of(model, noise("noise.left", 2, 3, 6, 6))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(tensor.dtype == before[name].dtype for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch._C._get_mkldnn_enabled() == onednn


def test_a_failure_in_the_twin_gives_the_runtime_back_too() -> None:
    calls: list[int] = []

    def body(_: nn.Module, x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("only once")
        return x + 1

    model, onednn = Function(body), torch._C._get_mkldnn_enabled()
    with pytest.raises(ReferenceFailedError, match="only once"):
        floor_of(model, noise("noise.once", 2, 3))
    assert torch._C._get_mkldnn_enabled() == onednn


def test_rounding_is_followed_through_attention() -> None:
    """Over keys of length one attention passes its values on, and with them the noise of what made them."""

    def body(inner: nn.Module, x: Tensor) -> Tensor:
        y = inner(2 + 1e-3 * x)  # nearly equal elements: the norm makes their rounding large
        return torch.nn.functional.scaled_dot_product_attention(y, y, y)

    model = fill(Function(body, nn.LayerNorm(4)))
    reference, floor = floor_of(model, noise("noise.attention", 2, 2, 1, 4))
    attended, normed = (reference.values[i] for i in (reference.outputs[""], reference.calls[1].outputs[0]))
    assert floor[attended.index].max_abs == pytest.approx(floor[normed.index].max_abs, rel=1e-3)
    assert floor[normed.index].max_abs > 1e-6


def test_attention_with_dropout_adds_no_noise() -> None:
    def body(inner: nn.Module, x: Tensor) -> Tensor:
        y = inner(x)
        return torch.nn.functional.scaled_dot_product_attention(y, y, y, dropout_p=0.5)

    assert at_the_end(fill(Function(body, nn.Linear(4, 4))), noise("noise.dropped", 2, 2, 5, 4)) < 1e-5


@pytest.mark.parametrize(
    ("shape", "weight", "options"),
    [
        ((2, 4, 33, 41), (6, 4, 3, 3), {"padding": 1}),
        ((1, 8, 40, 37), (8, 4, 5, 5), {"padding": 2, "stride": 2, "groups": 2}),
        ((2, 6, 20, 20), (6, 6, 3, 3), {"padding": 2, "dilation": 3}),
        ((1, 3, 50, 50), (5, 3, 7, 7), {"stride": 3}),
        ((3, 4, 30, 30), (4, 4, 3, 1), {"padding": (1, 0), "stride": (2, 1)}),
    ],
)
def test_a_convolution_in_tiles_gives_the_same_numbers(
    shape: tuple[int, ...], weight: tuple[int, ...], options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append((func, args))
            return func(*args, **(kwargs or {}))

    x, w = noise("tiles", *shape), noise("w", *weight)
    with Seen(), torch.no_grad():
        whole = torch.nn.functional.conv2d(x, w, **options)
    func, args = calls[0]
    assert tiles.convolution(func, args) is None
    monkeypatch.setattr(tiles, "MOST", 5000)
    pieces = tiles.convolution(func, args)
    assert pieces is not None
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-5)


def test_the_floor_of_a_large_value_does_not_depend_on_how_many_rows_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(7, 11, 13)).astype(np.float32)
    expected[0, 0] = -1e9
    others = [expected + rng.normal(size=expected.shape) * 1e-6 for _ in range(2)]
    others[0][2, 3] += 1.0
    whole = floor_from(expected, others)
    monkeypatch.setattr("layerdiff.noise.ROWS_AT_ONCE", 20)
    piecewise = floor_from(expected, others)
    assert whole.max_abs == piecewise.max_abs
    assert whole.rms == pytest.approx(piecewise.rms)
    assert whole.rows is not None
    np.testing.assert_array_equal(whole.rows, piecewise.rows)
    assert whole.rows.shape == (7, 11, 1)
