"""What people pass, and what they do with what they get: it works, or one line says what to do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from situations.small import IDS, TINY, assert_near, compiled, inputs, llama, seeded, two_layers
from veil import HybridFHEModel
from veil.runtime.modules import linear_modules

# Calibration inputs ---------------------------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(a) + self.linear(b)
        return out


@pytest.mark.parametrize("form", ["array", "float64", "list", "tuple", "dict of arrays"])
def test_inputs_of_other_forms_calibrate(form: str) -> None:
    """Tried by hand: each ended in a traceback of torch."""
    x, model = inputs(32), seeded(Two) if form in ("tuple", "dict of arrays") else two_layers()
    array = x.numpy()
    forms: dict[str, Any] = {"array": array, "float64": array.astype(np.float64), "list": array.tolist()}
    forms |= {"tuple": (x, x), "dict of arrays": {"a": array, "b": array}}
    names = ["linear"] if isinstance(model, Two) else ["0", "2"]
    hybrid = compiled(model, names, forms[form])
    given = (x, x) if isinstance(model, Two) else (x,)
    with torch.no_grad():
        assert_near(hybrid(*given), hybrid(*given, fhe="torch"))


def test_a_tokenizer_s_lists_are_one_sequence() -> None:
    """`tokenizer(text)` without return_tensors gives lists."""
    model = llama()
    hybrid = compiled(model, linear_modules(model), {"input_ids": [5, 9, 33], "attention_mask": [1, 1, 1]}, "disable")
    assert hybrid(IDS).logits.shape == (1, 4, 64)


WRONG = ["a text", [[1, 2], [3]], np.array(["a"]), iter([1])]


@pytest.mark.parametrize("x", WRONG, ids=lambda x: type(x).__name__)
def test_inputs_that_are_none_are_named(x: Any) -> None:
    with pytest.raises(TypeError, match="expected a tensor, an array, a tuple of positional inputs, or a dict"):
        compiled(two_layers(), ["0"], x)


def test_sets_of_data_and_lists_of_batches_are_told_what_to_give() -> None:
    """Tried by hand: '0 was given a TensorDataset', 'takes 2 positional arguments but 3 were given'."""
    with pytest.raises(TypeError, match="x is a TensorDataset, expected a tensor, an array"):
        compiled(two_layers(), ["0"], torch.utils.data.TensorDataset(inputs()))
    with pytest.raises(TypeError, match=r"x is 2 inputs, which the model does not take at once; join batches to one with"):
        compiled(two_layers(), ["0"], [inputs(), inputs()])


class Table:
    """As a table of pandas: NumPy can make an array of it."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return inputs(32).numpy().astype(np.float64)


def test_a_table_is_an_array() -> None:
    hybrid = compiled(two_layers(), ["0", "2"], Table())
    with torch.no_grad():
        assert_near(hybrid(inputs()), hybrid(inputs(), fhe="torch"))


def test_what_the_torch_model_has_is_said_to_be_there() -> None:
    """Users call `eval`, `to` and `generate` of the hybrid. Tried by hand: "object has no attribute 'eval'", and no more."""
    hybrid = compiled(two_layers(), ["0"], inputs(), "disable")
    for name in ("eval", "to", "state_dict", "parameters"):
        with pytest.raises(
            AttributeError, match=rf"has no attribute '{name}': the torch model has it, as hybrid\.model\.{name}$"
        ):
            getattr(hybrid, name)
    with pytest.raises(AttributeError, match=r"has no attribute 'nothing'$"):
        getattr(hybrid, "nothing")  # noqa: B009  types know that it is wrong


UNFIT: list[tuple[Any, str]] = [
    (torch.ones(4, 7), r"x \(\[4, 7\] float32\): .*; give inputs as it takes them$"),
    (torch.tensor(1.0), r"x \(\[\] float32\): "),
    (torch.ones(4, 6, dtype=torch.int64), r"x \(\[4, 6\] int64\): "),
    (torch.ones(4, 6, dtype=torch.float64), r"x \(\[4, 6\] float64\): "),
    ({"input": torch.ones(2, 3, 5)}, r"x \(input \[2, 3, 5\] float32\): "),
]


@pytest.mark.parametrize(("x", "said"), UNFIT, ids=range(len(UNFIT)))
def test_inputs_that_the_float_model_does_not_take_are_one_line_of_ours(x: Any, said: str) -> None:
    """Tried by hand: 'mat1 and mat2 shapes cannot be multiplied', and no word of whose."""
    with pytest.raises(ValueError, match="the float model cannot be run on " + said) as told:
        compiled(two_layers(), ["0", "2"], x)
    assert "\n" not in str(told.value)


def test_token_ids_that_the_float_model_has_no_row_for() -> None:
    """Tried by hand: 'index out of range in self', and for fractions a list of tensor types."""
    for x, what in ((torch.tensor([[999]]), "int64"), (torch.ones(1, 4), "float32")):
        with pytest.raises(ValueError, match=rf"the float model cannot be run on x \(\[1, \d\] {what}\): "):
            compiled(llama(), ["lm_head"], x)


def test_numbers_and_devices_of_other_types() -> None:
    """np.int64(8) for n_bits and torch.device("cpu"). Tried by hand."""
    hybrid = HybridFHEModel(two_layers(), ["0", "2"])
    hybrid.compile_model(inputs(), n_bits=np.int64(8), params=TINY, device=torch.device("cpu"))
    assert hybrid.manifest.groups[0].layers[0].bits == 8
    for wrong in (8.0, True, "8", 9):
        with pytest.raises(ValueError, match=r"n_bits of '0' is .*, expected an integer from 2 to 8"):
            HybridFHEModel(two_layers(), ["0"]).compile_model(inputs(), n_bits=wrong, params=TINY)  # type: ignore[arg-type]


def test_a_layer_takes_its_input_by_name() -> None:
    """`layer(input=x)` as nn.Linear allows. Tried by hand."""
    model = two_layers()
    compiled(model, ["0"], inputs(), "disable")
    assert torch.equal(model[0](input=inputs()), model[0](inputs()))
    with pytest.raises(TypeError, match="0 takes one tensor"):
        model[0](inputs(), inputs())
    with pytest.raises(TypeError, match=r"0 was given a ndarray, expected a torch\.Tensor"):
        model[0](inputs().numpy())


WRONG_INPUTS = [
    (torch.randn(2, 7), TypeError, r"0 was given a tensor \(2, 7\), expected \[\.\.\., 6\]"),
    (torch.tensor(1.0), TypeError, r"0 was given a tensor \(\), expected \[\.\.\., 6\]"),
    (torch.ones(2, 6, dtype=torch.int64), TypeError, r"0 was given torch\.int64, expected floating-point activations"),
    (torch.ones(2, 6, dtype=torch.complex64), TypeError, r"0 was given torch\.complex64, expected floating-point"),
]


@pytest.mark.parametrize("mode", ["disable", "execute"])
@pytest.mark.parametrize(("x", "error", "said"), WRONG_INPUTS, ids=lambda value: str(getattr(value, "dtype", "")))
def test_inputs_that_torch_refuses_are_refused(x: torch.Tensor, error: type[Exception], said: str, mode: str) -> None:
    """Tried by hand: rows of seven numbers were cut to six, and whole numbers answered with zeros."""
    hybrid = compiled(two_layers(), ["0", "2"], inputs(), mode)
    with pytest.raises(RuntimeError):
        hybrid(x, fhe="torch")
    with pytest.raises(error, match=said):
        hybrid(x)


def test_token_ids_are_whole_numbers() -> None:
    model = seeded(lambda: nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 3)))
    hybrid = compiled(model, ["0", "1"], torch.tensor([[0, 8, 3]]), "disable")
    for x in (torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)):
        with pytest.raises(TypeError, match=r"0 was given torch\.\w+, expected token ids"):
            hybrid(x)
    with pytest.raises(IndexError, match="outside the embedding's 9 rows"):
        hybrid(torch.tensor([[9]]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_calibration_on_what_is_not_finite_is_refused(value: float) -> None:
    """Tried by hand: weights were balanced for NaN, and the model compiled."""
    x = inputs(32)
    x[3, 2] = value
    with pytest.raises(ValueError, match="NaN or infinity reached '0' in calibration"):
        compiled(two_layers(), ["0", "2"], x)


@pytest.mark.parametrize("x", [torch.zeros(4, 6), torch.empty(0, 6)], ids=["zeros", "no rows"])
def test_static_scales_need_inputs(x: torch.Tensor) -> None:
    """Tried by hand: a scale for nothing but zeros made every answer zero."""
    with pytest.raises(ValueError, match="calibration brought nothing but zeros to '0', so its inputs have no scale"):
        compiled(two_layers(), ["0"], x, use_dynamic_quantization=False)
    model = two_layers()
    with torch.no_grad():
        expected = model(inputs())
    assert_near(compiled(model, ["0"], x, "disable")(inputs()), expected)


# Names and models -----------------------------------------------------------------------------------------------------


def test_a_linear_layer_alone_is_refused() -> None:
    """Tried by hand: the list of its layers was ['']."""
    for use in (linear_modules, lambda model: HybridFHEModel(model, [""])):
        with pytest.raises(ValueError, match=r"model is itself a Linear.*pass nn\.Sequential\(model\)"):
            use(nn.Linear(3, 2))


def test_the_nearest_name_is_one_that_can_be_remote() -> None:
    """Tried by hand: the nearest to 'dropped' was a dropout."""
    model = nn.ModuleDict({"drop": nn.Dropout(), "down": nn.Linear(3, 2)})
    with pytest.raises(ValueError, match="no module named 'dropp'; the nearest is 'down'"):
        HybridFHEModel(model, "dropp")


class OptimizedModule(nn.Module):
    """What torch.compile makes has this name."""


class Linear8bitLt(nn.Linear):
    """As bitsandbytes' layers: int8 in the place of floats."""

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.weight = nn.Parameter(torch.zeros(5, 6, dtype=torch.int8), requires_grad=False)


class Pipeline:
    model = nn.Linear(2, 2)


REFUSED: list[tuple[Any, type[Exception], str]] = [
    (OptimizedModule(), TypeError, "is compiled by torch.compile; pass the model that it was made from"),
    (
        nn.DataParallel(nn.Sequential(nn.Linear(3, 2))),
        TypeError,
        "which runs in several threads; pass its .module",
    ),
    (Pipeline(), TypeError, r"is a Pipeline, expected a torch\.nn\.Module; pass its \.model"),
    (
        nn.Sequential(Linear8bitLt()),
        ValueError,
        r"0: a Linear8bitLt with a weight of torch\.int8 is quantized already",
    ),
    (nn.Sequential(nn.LazyLinear(2)), ValueError, "0: a LazyLinear has no weight before the model's first pass; run"),
    (nn.Sequential(nn.Linear(3, 2, dtype=torch.complex64)), ValueError, "0: a Linear of complex numbers cannot be remote"),
    (nn.Sequential(nn.Linear(3, 2).to(torch.float8_e4m3fn)), ValueError, "float8_e4m3fn is quantized already; load the"),
    (nn.Sequential(nn.Linear(3, 2, device="meta")), ValueError, "0: its weight has no values in memory .*offloaded to disk"),
]


@pytest.mark.parametrize(("model", "error", "said"), REFUSED, ids=lambda value: type(value).__name__)
def test_models_that_cannot_be_are_refused_at_once(model: Any, error: type[Exception], said: str) -> None:
    """transformers #17901 (layers of int8), accelerate's offload to disk, and wrappers. Tried by hand."""
    for use in (linear_modules, lambda model: HybridFHEModel(model, ["0"])):
        with pytest.raises(error, match=said):
            use(model)


class SentenceLike(nn.Sequential):
    """As a sentence-transformers object: a Sequential whose one input is a dict that goes from part to part."""

    def forward(self, input: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sentence_embedding": super().forward(input["features"]).mean(0)}  # type: ignore[no-untyped-call]


def test_a_model_whose_input_is_a_dict() -> None:
    """sentence-transformers' forward takes its features as one dict. Tried by hand: 'unexpected keyword argument'."""
    model = seeded(lambda: SentenceLike(nn.Linear(6, 8), nn.Linear(8, 5)))
    x = {"features": inputs(32)}
    hybrid = compiled(model, ["0", "1"], x)
    with torch.no_grad():
        assert_near(hybrid(x)["sentence_embedding"], hybrid(x, fhe="torch")["sentence_embedding"])


# Copies and compilers -------------------------------------------------------------------------------------------------


def test_copies_are_refused_in_one_line(tmp_path: Path) -> None:
    """fairscale #816: the copy of a module whose forward is wrapped calls the original's. Tried by hand."""
    model = two_layers()
    hybrid = compiled(model, ["0"], inputs(), "disable")
    tries: list[Callable[[], object]] = [
        lambda: copy.copy(hybrid),
        lambda: copy.deepcopy(hybrid),
        lambda: copy.deepcopy(hybrid.model),
    ]
    tries += [lambda: pickle.dumps(hybrid), lambda: pickle.dumps(model), lambda: torch.save(model, tmp_path / "m.pt")]
    for attempt in tries:
        with pytest.raises(TypeError, match=r"cannot be copied or pickled; save it with HybridFHEModel\.save"):
            attempt()
    assert copy.deepcopy(model[1])(inputs()).shape == (3, 6)


def test_a_compiler_of_graphs_is_refused_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried by hand: torch.compile worked for 37 s and ended in an assertion. Here it only says that it is at work."""
    model = two_layers()
    hybrid = compiled(model, ["0"], inputs(), "disable")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(TypeError, match=r"torch\.compile cannot look into remote layers; call the model as it is"):
        hybrid(inputs())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torch_compile_itself_is_refused() -> None:
    hybrid = compiled(two_layers(), ["0"], inputs(), "execute")

    def in_place() -> nn.Module:
        hybrid.model.compile()
        return hybrid.model

    ways: tuple[Callable[[], Any], ...] = (lambda: torch.compile(hybrid.model), in_place)
    for make in ways:
        with pytest.raises(TypeError, match=r"torch\.compile cannot look into remote layers"):
            make()(inputs())
