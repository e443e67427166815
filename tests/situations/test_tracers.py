"""What records or rewrites a model, and layers and inputs of other packages: they work, or one line says what to do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from transformers.pytorch_utils import Conv1D

from situations.small import assert_near, compiled, inputs, seeded, two_layers
from veil import HybridFHEModel
from veil.errors import ModelChanged
from veil.runtime.modules import linear_modules

# What records a model -------------------------------------------------------------------------------------------------

record: Any = torch.jit  # whose functions have no types, as those of torch.ao
quantization: Any = torch.ao.quantization
RECORDERS: dict[str, tuple[Callable[[Any], object], str]] = {
    "script": (lambda hybrid: record.script(hybrid.model), "TorchScript cannot look into remote layers"),
    "trace": (lambda hybrid: record.trace(hybrid.model, inputs()), "TorchScript cannot look"),
    "a layer": (lambda hybrid: record.trace(hybrid.model[0], inputs()), "TorchScript cannot look"),
    "the hybrid": (lambda hybrid: record.trace(hybrid, inputs()), "TorchScript cannot look"),
    "script the hybrid": (record.script, "TorchScript cannot look"),
    "fx": (lambda hybrid: torch.fx.symbolic_trace(hybrid.model), r"torch\.fx cannot look into remote layers"),
    "make_fx": (lambda hybrid: make_fx(hybrid.model)(inputs()), r"torch\.fx cannot look into remote layers"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["torch", "disable", "execute"])
@pytest.mark.parametrize("way", RECORDERS)
def test_what_records_a_model_is_refused(way: str, mode: str) -> None:
    """pytorch #42566. Tried by hand: a trace in mode disable had the answer as a constant, one in mode torch the weights."""
    hybrid = compiled(two_layers(), ["0", "2"], inputs(), mode)
    way_of, said = RECORDERS[way]
    with pytest.raises(TypeError, match=said):
        way_of(hybrid)
    with torch.no_grad():
        assert_near(hybrid(inputs()), hybrid(inputs(), fhe="torch"))


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_torchscript_is_refused_and_a_part_stays_local(caplog: pytest.LogCaptureFixture) -> None:
    """Tried by hand: "'OrderedDictWrapper' object has no attribute 'get'"."""
    scripted = record.script(two_layers())
    for use in (linear_modules, lambda model: HybridFHEModel(model, ["0"])):
        with pytest.raises(TypeError, match="of TorchScript, whose layers cannot be replaced; pass the model it was made"):
            use(scripted)
    model = nn.Sequential(scripted, seeded(lambda: nn.Linear(5, 3)))
    with caplog.at_level(logging.WARNING, "veil"):
        assert linear_modules(model) == ["1"]
    assert "RecursiveScriptModule" in caplog.text
    with pytest.raises(ValueError, match=r"0\.0: a RecursiveScriptModule of TorchScript cannot be replaced; build"):
        HybridFHEModel(model, ["0.0"])
    with torch.no_grad():
        expected = model(inputs())
        assert_near(compiled(model, ["1"], inputs(32))(inputs()), expected)


def test_weights_that_are_gone_are_said() -> None:
    """`.to("meta")` frees memory. Tried by hand: 'Tensor.item() cannot be called on meta tensors'."""
    hybrid = compiled(two_layers(), ["0", "2"], inputs(), "disable")
    hybrid.model.to("meta")
    with pytest.raises(ModelChanged, match=r"the weights of '0' have no values any more .*; load the model again"):
        hybrid(inputs())


# Inputs of other layouts ----------------------------------------------------------------------------------------------

LAYOUTS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "sparse": (lambda x: x.to_sparse(), r"0 was given a tensor that is sparse_coo; give its to_dense\(\)"),
    "csr": (lambda x: x.to_sparse_csr(), r"0 was given a tensor that is sparse_csr; give its to_dense\(\)"),
    "mkldnn": (lambda x: x.to_mkldnn(), "_mkldnn; give|of mkldnn's layout.*; give it as a dense float tensor"),
    "nested": (lambda x: torch.nested.nested_tensor([x, x[:1]]), "nested"),
    "quantized": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), r"torch\.qint8, expected|is quantized, of"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["disable", "execute"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_of_another_layout_are_refused(layout: str, mode: str) -> None:
    """Tried by hand: 'Internal error: NestedTensorImpl doesn't support sizes', 'reshape is not implemented'."""
    hybrid = compiled(two_layers(), ["0", "2"], inputs(), mode)
    make, said = LAYOUTS[layout]
    with pytest.raises(TypeError, match=said):
        hybrid(make(inputs()))


class Graph(nn.Module):
    """A layer of a graph network: neighbours are summed by a sparse matrix, which no remote layer sees."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
        return torch.sparse.mm(neighbours, self.linear(x))


def test_sparse_inputs_that_stay_local_work() -> None:
    model, x = seeded(Graph), inputs(8)
    neighbours = (torch.eye(8) + torch.eye(8).roll(1, 0)).to_sparse()
    with torch.no_grad():
        expected = model(x, neighbours)
        assert_near(compiled(model, ["linear"], (x, neighbours))(x, neighbours), expected)


def test_a_negated_view_is_read_as_what_it_stands_for() -> None:
    """`.conj().imag` gives one. Tried by hand: "Can't call numpy() on Tensor that has negative bit set"."""
    model, x = two_layers(), torch.complex(inputs(), inputs()).conj().imag
    assert x.is_neg()
    with torch.no_grad():
        expected = model(x)
        assert_near(compiled(model, ["0", "2"], inputs(32))(x), expected)


def test_another_default_device_does_not_reach_the_compiler() -> None:
    """torch.set_default_device("cuda") is common; here "meta", where every forgotten device is an error."""
    model, x = two_layers(), inputs(32)
    with torch.no_grad(), torch.device("meta"):
        hybrid = compiled(model, ["0", "2"], x)
        got = hybrid(x)
    with torch.no_grad():
        assert_near(got, hybrid(x, fhe="torch"))


# Layers of other kinds ------------------------------------------------------------------------------------------------


class Renamed(Conv1D):  # type: ignore[misc]
    """Only its name differs."""


class Doubled(Conv1D):  # type: ignore[misc]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = 2 * super().forward(x)
        return out


def test_subclasses_of_conv1d_are_linear_layers_if_they_compute_as_one() -> None:
    """Tried by hand: 'is a Renamed; a remote module is an nn.Linear, a Conv1D'."""
    model = seeded(lambda: nn.Sequential(Renamed(8, 6), Doubled(5, 8)))
    assert linear_modules(model) == ["0"]
    with torch.no_grad():
        expected = model(inputs(32))
        assert_near(compiled(model, ["0"], inputs(32))(inputs(32)), expected)
    with pytest.raises(ValueError, match="1: a Doubled computes more than a linear layer; leave it out"):
        compiled(seeded(lambda: nn.Sequential(Renamed(8, 6), Doubled(5, 8))), ["1"], inputs())


class QuantLinear(nn.Module):
    """As GPTQ's and AWQ's layers: packed integers as buffers, and no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 6, 5
        self.register_buffer("qweight", torch.zeros(1, 5, dtype=torch.int32))


@pytest.mark.filterwarnings("ignore")
def test_layers_that_others_have_quantized_are_refused_by_name() -> None:
    """ModelCloud/GPTQModel's layers are no nn.Linear. Tried by hand: torch.ao's "is a Linear; ... is an nn.Linear"."""
    ours = [(quantization.quantize_dynamic(two_layers(), {nn.Linear}), r"torch\.ao"), (nn.Sequential(QuantLinear()), r"\w+")]
    for model, package in ours:
        for use in (linear_modules, lambda model: HybridFHEModel(model, ["0"])):
            with pytest.raises(ValueError, match=rf"0: a \w+ of {package} is quantized already; load the model"):
                use(model)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(self.attention(x, x, x)[0])
        return out


def test_the_layers_of_torch_s_attention_are_not_offered(caplog: pytest.LogCaptureFixture) -> None:
    """It multiplies with `out_proj.weight` and never calls that layer: pytorch #82919."""
    model, x = seeded(Attention), torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = model(x)
    with caplog.at_level(logging.WARNING, "veil"):
        names = linear_modules(model)
    assert names == ["linear"]
    assert "attention.out_proj (NonDynamicallyQuantizableLinear, " in caplog.text
    with torch.no_grad():
        assert_near(compiled(model, names, x)(x), expected)
    with pytest.raises(ModelChanged, match=r"the weight of 'attention\.out_proj' without calling it; leave it out"):
        compiled(seeded(Attention), ["attention.out_proj"], x)
