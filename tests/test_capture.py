"""What one forward pass of a model leaves on record, and that it leaves nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from layerdiff.capture import capture
from layerdiff.errors import ReferenceFailedError
from layerdiff.tensors import to_array
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerdiff.model import Call, Reference


class Function(nn.Module):
    """A module whose forward is a function of its only child `inner` and the input."""

    def __init__(self, body: Callable[..., Any], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.inner = inner or nn.Identity()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.body(self.inner, *args, **kwargs)


def call_of(reference: Reference, layer: str, call: int = 0) -> Call:
    return next(c for c in reference.calls if (c.layer, c.call) == (layer, call))


def output_of(reference: Reference, layer: str, call: int = 0) -> np.ndarray:
    array = reference.values[call_of(reference, layer, call).outputs[0]].array
    assert array is not None
    return array


def result_of(reference: Reference, name: str = "") -> np.ndarray:
    array = reference.values[reference.outputs[name]].array
    assert array is not None
    return array


def operators_behind(reference: Reference, value: int) -> set[str]:
    """Every operator that a value depends on."""
    site = reference.producer(value)
    return set() if site is None else {site.op}.union(*(operators_behind(reference, v) for v in site.inputs))


# Updates in place.


def test_an_in_place_activation_does_not_overwrite_what_was_recorded_before_it() -> None:
    model = fill(nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True)))
    x = noise("capture.relu", 3, 6)
    reference = capture(model, (x,), {})
    np.testing.assert_array_equal(output_of(reference, "0"), model[0](x).detach().numpy())
    assert output_of(reference, "0").min() < 0 <= output_of(reference, "1").min()


def test_an_update_of_a_view_gives_a_new_version_of_the_tensor_that_it_views() -> None:
    def body(inner: nn.Module, x: Tensor) -> Tensor:
        y = inner(x)
        y[:, 0] = 0
        return y * 2

    x = noise("capture.view", 3, 4) + 5
    reference = capture(Function(body, nn.Linear(4, 4)), (x,), {})
    assert np.all(output_of(reference, "inner") != 0)
    assert np.all(result_of(reference)[:, 0] == 0)
    assert np.all(result_of(reference)[:, 1:] != 0)
    assert {"aten.fill_.Tensor", "aten.addmm"} <= operators_behind(reference, reference.outputs[""])


def test_an_update_of_a_tensor_is_seen_by_a_view_that_was_made_before() -> None:
    def body(_: nn.Module, x: Tensor) -> Tensor:
        y = x + 0
        row = y[0]
        y.mul_(3)
        return row + 1

    x = noise("capture.base", 2, 4)
    reference = capture(Function(body), (x,), {})
    np.testing.assert_allclose(result_of(reference), x[0].numpy() * 3 + 1, rtol=1e-6)
    assert "aten.mul_.Tensor" in operators_behind(reference, reference.outputs[""])


def test_an_update_of_one_view_is_seen_by_another_view() -> None:
    def body(_: nn.Module, x: Tensor) -> Tensor:
        y = x + 0
        left, whole = y[:, :2], y.view(-1)
        left.add_(10)
        return whole * 1

    x = noise("capture.two", 2, 4)
    reference = capture(Function(body), (x,), {})
    expected = x.clone()
    expected[:, :2] += 10
    np.testing.assert_array_equal(result_of(reference), expected.reshape(-1).numpy())
    assert "aten.add_.Tensor" in operators_behind(reference, reference.outputs[""])


def test_an_out_argument_is_a_new_version_of_the_tensor_it_names() -> None:
    def body(_: nn.Module, x: Tensor) -> Tensor:
        room = torch.zeros_like(x)
        torch.add(x, 1, out=room)
        return room * 2

    x = noise("capture.out", 2, 3)
    reference = capture(Function(body), (x,), {})
    np.testing.assert_array_equal(result_of(reference), ((x + 1) * 2).numpy())
    assert "aten.add.out" in operators_behind(reference, reference.outputs[""])


def test_uninitialised_memory_is_not_taken_for_a_value() -> None:
    """What `empty_like` returns is whatever lay there before: it differs between runs and means nothing."""
    reference = capture(Function(lambda _, x: torch.empty_like(x).copy_(x)), (noise("capture.empty", 2, 3),), {})
    makers = [site for site in reference.sites if site.op.startswith("aten.empty")]
    assert makers
    made = [reference.values[value] for site in makers for value in site.outputs]
    assert all(value.array is None or value.constant for value in made)


def test_every_value_is_made_by_an_earlier_operator_than_the_one_that_reads_it() -> None:
    def body(inner: nn.Module, x: Tensor) -> Tensor:
        y = inner(x)
        for column in range(3):
            y[:, column] = y[:, column + 1].exp_() + 1
        return y.sum()

    reference = capture(Function(body, nn.Linear(4, 4)), (noise("capture.order", 2, 4),), {})
    for site in reference.sites:
        for value in site.inputs:
            maker = reference.values[value].site
            assert maker is None or maker < site.index
        assert all(reference.values[value].site == site.index for value in site.outputs)


def test_an_input_that_the_model_updates_in_place_is_recorded_as_it_was_given() -> None:
    x = noise("capture.input", 2, 3)
    given = x.numpy().copy()
    reference = capture(Function(lambda _, x: x.mul_(2)), (x,), {})
    (value,) = reference.inputs.values()
    np.testing.assert_array_equal(reference.values[value].array, given)
    np.testing.assert_array_equal(result_of(reference), given * 2)


# The names of calls.


class Unit(nn.Module):
    act: nn.Module = nn.SiLU()  # one instance for all, as Ultralytics does

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.act = type(self).act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.lin(x))


def test_a_shared_activation_is_named_by_the_parent_that_called_it() -> None:
    model = nn.Sequential(Unit(), nn.Sequential(Unit(), Unit()))
    reference = capture(model, (noise("capture.shared", 2, 4),), {})
    found = [(call.layer, call.call) for call in reference.calls if call.type == "SiLU"]
    assert found == [("0.act", 0), ("1.0.act", 0), ("1.1.act", 0)]


def test_the_calls_of_one_module_are_numbered_in_order() -> None:
    def body(inner: nn.Module, x: Tensor) -> Tensor:
        return inner(inner(inner(x)))

    reference = capture(Function(body, nn.Linear(4, 4)), (noise("capture.again", 2, 4),), {})
    assert [(call.layer, call.call) for call in reference.calls if call.layer] == [("inner", i) for i in range(3)]
    assert call_of(reference, "inner", 1).inputs[0] == call_of(reference, "inner", 0).outputs[0]


def test_a_child_that_a_stranger_calls_is_named_by_its_own_place() -> None:
    class Borrower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lender = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.lender[1](x)

    reference = capture(Borrower(), (noise("capture.borrow", 2, 4),), {})
    assert [call.layer for call in reference.calls] == ["", "lender.1"]
    assert "forward was not called" in reference.uncalled["lender.0"]


def test_parents_come_before_children_and_the_root_is_call_zero() -> None:
    reference = capture(nn.Sequential(Unit(), Unit()), (noise("capture.tree", 2, 4),), {})
    assert reference.calls[0].layer == ""
    assert all(call.parent is None or call.parent < call.index for call in reference.calls)


def test_an_operator_belongs_to_the_module_whose_forward_ran_it() -> None:
    def body(inner: nn.Module, x: Tensor) -> Tensor:
        return torch.relu(inner(x))

    reference = capture(Function(body, nn.Linear(4, 4)), (noise("capture.owner", 2, 4),), {})
    owners = {site.op: reference.layer_of(site) for site in reference.sites}
    assert owners["aten.addmm"] == "inner"
    assert owners["aten.relu"] == ""


# What goes in and what comes out.


@dataclasses.dataclass
class Boxes:
    corners: Tensor
    scores: Tensor


OUTPUTS = {
    "tensor": (lambda x: x + 1, [""]),
    "tuple": (lambda x: (x + 1, x * 2), ["0", "1"]),
    "nested": (lambda x: [x + 1, (x * 2, x - 1)], ["0", "1.0", "1.1"]),
    "dict": (lambda x: {"logits": x + 1, "hidden": {"last": x * 2}}, ["logits", "hidden.last"]),
    "dataclass": (lambda x: Boxes(x + 1, x * 2), ["corners", "scores"]),
    "none": (lambda _: None, []),
    "number": (lambda _: 3.5, []),
    "partly-none": (lambda x: (x + 1, None), ["0"]),
}


@pytest.mark.parametrize(("body", "names"), OUTPUTS.values(), ids=OUTPUTS.keys())
def test_outputs_are_named_by_their_place_in_what_the_model_returns(
    body: Callable[[Tensor], Any], names: list[str]
) -> None:
    inner = Function(lambda _, x: body(x))
    reference = capture(Function(lambda inner, x: inner(x), inner), (noise("capture.outputs", 2, 3),), {})
    assert sorted(reference.outputs) == sorted(names)
    assert len(call_of(reference, "inner").outputs) == len(names)
    for value in reference.outputs.values():
        assert reference.values[value].array is not None


def test_a_tensor_that_leaves_twice_is_a_value_for_each_output() -> None:
    def body(_: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x + 1
        return y, y

    reference = capture(Function(body), (noise("capture.twice", 2, 3),), {})
    first, second = (reference.values[reference.outputs[name]] for name in ("0", "1"))
    assert first.index != second.index
    assert np.array_equal(first.array, second.array)
    assert reference.sites[second.site].inputs == (first.index,)


def test_inputs_are_recorded_under_the_names_of_the_arguments() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, *, extra: dict[str, Tensor]) -> Tensor:
            return x * extra["mask"]

    x, mask = noise("capture.x", 2, 3), noise("capture.mask", 2, 3)
    reference = capture(Masked(), (x,), {"extra": {"mask": mask}})
    assert set(reference.inputs) == {"x", "extra.mask"}
    np.testing.assert_array_equal(reference.values[reference.inputs["extra.mask"]].array, mask.numpy())
    np.testing.assert_array_equal(result_of(reference), (x * mask).numpy())


DTYPES = {
    torch.float64: np.float64,
    torch.float16: np.float16,
    torch.bfloat16: np.float32,
    torch.int64: np.int64,
    torch.int8: np.int8,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
    torch.complex64: np.float32,
}


@pytest.mark.parametrize(("dtype", "stored"), DTYPES.items(), ids=str)
def test_values_of_every_dtype_are_kept_without_loss(dtype: torch.dtype, stored: type) -> None:
    x = (noise("capture.dtype", 4, 5) * 3).to(dtype)
    reference = capture(Function(lambda _, x: torch.cat([x, x])), (x,), {})
    value = reference.values[reference.outputs[""]]
    assert value.dtype == str(dtype).removeprefix("torch.")
    assert value.array is not None
    assert value.array.dtype == stored
    kept = torch.from_numpy(value.array)
    assert torch.equal(torch.view_as_complex(kept) if dtype.is_complex else kept.to(dtype), torch.cat([x, x]))


def test_a_tensor_without_dense_numbers_has_no_array() -> None:
    assert to_array(torch.eye(3).to_sparse()) is None
    assert to_array(torch.empty(3, device="meta")) is None


def test_a_lazily_conjugated_tensor_is_kept_as_its_numbers() -> None:
    z = torch.tensor([1 + 2j, 3 - 4j])
    np.testing.assert_array_equal(to_array(z.conj()), [[1, -2], [3, 4]])


def test_an_array_does_not_share_memory_with_its_tensor() -> None:
    tensor = torch.zeros(3)
    array = to_array(tensor)
    tensor.add_(1)
    np.testing.assert_array_equal(array, np.zeros(3))


def test_parameters_are_recorded_and_constant() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    reference = capture(model, (noise("capture.parameters", 2, 3),), {})
    assert {value.parameter for value in reference.values if value.constant} == {"0.weight", "0.bias", None}
    assert all(value.constant for value in reference.values if value.parameter)
    assert set(reference.parameters) == {"0.weight", "0.bias"}


# Modules that run whole, and modules that hide their parts.


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_recurrent_layer_is_one_site(kind: type[nn.RNNBase]) -> None:
    model = Function(lambda inner, x: inner(x)[0].tanh(), kind(3, 4, num_layers=2, bidirectional=True))
    reference = capture(model, (noise("capture.rnn", 5, 2, 3),), {})
    assert [site.op for site in reference.sites] == [f"nn.{kind.__name__}", "aten.tanh"]
    (layer, _) = reference.sites
    read = {reference.values[value].parameter for value in layer.inputs}
    assert {"inner.weight_ih_l0", "inner.weight_hh_l1_reverse"} <= read
    assert set(reference.inputs.values()) <= set(layer.inputs)


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_every_step_of_a_recurrent_cell_is_a_site_that_reads_the_one_before(kind: type[nn.RNNCellBase]) -> None:
    def body(inner: nn.Module, x: Tensor) -> Any:
        state = None
        for step in x:
            state = inner(step, state)
        return state

    reference = capture(Function(body, kind(3, 4)), (noise("capture.cell", 3, 2, 3),), {})
    steps = [site for site in reference.sites if site.op.startswith("nn.")]
    assert [site.op for site in steps] == [f"nn.{kind.__name__}"] * 3
    for before, after in itertools.pairwise(steps):
        assert set(before.outputs) & set(after.inputs)


def test_the_parts_of_a_transformer_layer_run_although_torch_has_a_fused_path() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    enabled = torch.backends.mha.get_fastpath_enabled()
    reference = capture(model, (noise("capture.encoder", 2, 4, 8),), {})
    assert {"self_attn", "linear1", "linear2", "norm1", "norm2"} <= {call.layer for call in reference.calls}
    assert torch.backends.mha.get_fastpath_enabled() == enabled


def test_the_fused_path_is_allowed_again_after_a_failure() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with pytest.raises(ReferenceFailedError):
        capture(model, (noise("capture.encoder", 2, 4, 7),), {})
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_module_that_never_ran_is_listed_with_the_reason() -> None:
    def body(inner: nn.Module, x: Tensor) -> Tensor:
        return nn.functional.linear(x, inner[0].weight)

    model = Function(body, nn.ModuleList([nn.Linear(3, 3), nn.ReLU()]))
    reference = capture(model, (noise("capture.uncalled", 2, 3),), {})
    assert "container" in reference.uncalled["inner"]
    assert "parameters are used by the root module" in reference.uncalled["inner.0"]
    assert "was not called with these inputs" in reference.uncalled["inner.1"]


# The model is left as it was.


class Careless(nn.Module):
    """Changes everything that a forward can change, and then fails if asked to."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("steps", torch.zeros(1))
        self.register_buffer("absent", None)
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(x)) + random.random() + float(np.random.rand())  # noqa: NPY002
        self.steps += 1
        self.steps = self.steps * 2
        self.absent = torch.ones(2)
        self.norm.eval()
        torch.set_grad_enabled(not torch.is_grad_enabled())
        if self.fails:
            raise KeyError("out of cheese")
        return x


def state_of(model: nn.Module) -> dict[str, Any]:
    return {
        "buffers": {name: (id(b), b.tolist()) for name, b in model.named_buffers()},
        "names": [sorted(module._buffers) for module in model.modules()],
        "flags": [module.training for module in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "kwargs hooks": [
            len(m._forward_hooks_with_kwargs) + len(m._forward_pre_hooks_with_kwargs) for m in model.modules()
        ],
        "parameters": {name: (id(p), p.tolist(), p.requires_grad, p.grad) for name, p in model.named_parameters()},
        "grad mode": torch.is_grad_enabled(),
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
    }


@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
@pytest.mark.parametrize("grad", [False, True], ids=["no-grad", "grad"])
def test_the_model_and_every_global_state_are_left_as_they_were(*, fails: bool, grad: bool) -> None:
    model = Careless(fails=fails)
    with torch.set_grad_enabled(grad):
        before = state_of(model)
        if fails:
            with pytest.raises(ReferenceFailedError, match="out of cheese"):
                capture(model, (noise("capture.careless", 4, 3),), {})
        else:
            capture(model, (noise("capture.careless", 4, 3),), {})
        assert state_of(model) == before


def test_a_batchnorm_traced_in_train_mode_keeps_its_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3)).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    reference = capture(model, (noise("capture.norm", 4, 3, 2, 2) + 7,), {})
    assert abs(output_of(reference, "0").mean()) < 1e-5
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_the_users_own_hooks_still_run_and_stay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    seen: list[str] = []

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        seen.append("ran")
        return output + 100

    handle = model[0].register_forward_hook(hook)
    reference = capture(model, (noise("capture.hooks", 2, 3),), {})
    assert seen == ["ran"]
    assert output_of(reference, "0").min() > 50
    assert list(model[0]._forward_hooks) == [handle.id]


def test_recording_works_inside_inference_mode() -> None:
    model = fill(nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)))
    with torch.inference_mode():
        x = noise("capture.inference", 2, 3)
        reference = capture(model, (x,), {})
        np.testing.assert_array_equal(result_of(reference), model(x).numpy())
    assert [call.layer for call in reference.calls] == ["", "0", "1"]


def test_a_failing_forward_is_reported_with_the_module_that_failed() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ReferenceFailedError, match=r"raised RuntimeError in 1\.0: ") as caught:
        capture(model, (noise("capture.fails", 2, 3),), {})
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_two_recordings_of_one_model_are_equal() -> None:
    model = fill(nn.Sequential(Unit(), nn.Dropout(0.5), Unit())).train()
    first, second = (capture(model, (noise("capture.same", 2, 4),), {}) for _ in range(2))
    assert [site.op for site in first.sites] == [site.op for site in second.sites]
    np.testing.assert_array_equal(result_of(first), result_of(second))


@pytest.mark.parametrize("padding", [(2, 2), (2, 2, 1, 1), (1, 0, 2, 1)])
def test_memory_that_is_only_partly_written_is_no_value(padding: tuple[int, ...]) -> None:
    """Circular padding fills new memory slice by slice, and copies slices that it has not filled yet."""
    model = Function(lambda _, x: torch.nn.functional.pad(x, padding, mode="circular"))
    x = noise("capture.circular", 2, 3, 5, 6)[..., 0] if len(padding) == 2 else noise("capture.circular", 2, 3, 5, 6)
    runs = []
    for chance in (1.0, 2.0, 3.0):
        litter = [torch.full((count,), chance) for count in range(1, 700)]
        del litter  # what lies in new memory now
        runs.append(capture(model, (x,), {}))
    for values in zip(*(run.values for run in runs), strict=True):
        arrays = [value.array for value in values]
        assert all((array is None) == (arrays[0] is None) for array in arrays)
        assert arrays[0] is None or all(np.array_equal(arrays[0], array) for array in arrays)
    padded = runs[0].values[next(iter(runs[0].outputs.values()))].array
    assert np.array_equal(padded, torch.nn.functional.pad(x, padding, mode="circular"))
