"""Options and architectures: what they are, what follows from them, and what is refused."""

import copy
import inspect
import pickle
import re
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest

from lstm_ext import LSTM, SGD, Adam, Forecaster, LSTMCell, LSTMNetwork, Options, parameter_layout, train
from lstm_ext.options import Architecture, Cell, OptionArguments

EVERY_OPTION = {  # away from its default, but for go_backwards and forget_bias, which exclude others
    "num_layers": 3,
    "bidirectional": "sum",
    "proj_size": 2,
    "peephole": True,
    "layer_norm": True,
    "coupled_gates": True,
    "cell_clip": 3.0,
    "use_bias": False,
    "gate_activation": "hard_sigmoid",
    "cell_activation": "relu",
    "learn_initial_state": True,
    "dropout": 0.1,
    "recurrent_dropout": 0.2,
    "zoneout": (0.3, 0.4),
    "weight_dropout": 0.5,
}


# --- what they are ---


def test_the_arguments_are_the_fields():
    names = [field.name for field in fields(Options)]
    assert list(OptionArguments.__annotations__) == names
    assert EVERY_OPTION.keys() | {"go_backwards", "forget_bias"} == set(names)


def test_defaults_are_those_of_the_article():
    options = Options()
    assert options.changed() == {}
    assert (options.num_layers, options.bidirectional, options.proj_size) == (1, None, None)
    assert (options.forget_bias, options.zoneout, options.use_bias) == (None, (0.0, 0.0), True)
    assert (options.gate_activation, options.cell_activation) == ("sigmoid", "tanh")


def test_changed_makes_the_same_options():
    options = Options(**EVERY_OPTION)
    assert options.changed() == EVERY_OPTION
    assert Options(**options.changed()) == options
    assert Options(go_backwards=True).changed() == {"go_backwards": True}
    assert Options(forget_bias=1).changed() == {"forget_bias": 1.0}
    assert Options(forget_bias=2) == Options()  # of initial weights alone


def test_options_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Options().num_layers = 2


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("zoneout", 0.25, (0.25, 0.25)),
        ("zoneout", [0, 0.5], (0.0, 0.5)),
        ("zoneout", (np.float32(0.5), 0), (0.5, 0.0)),
        ("num_layers", np.int64(2), 2),
        ("cell_clip", 3, 3.0),
        ("forget_bias", np.float64(-2), -2.0),
        ("bidirectional", True, "concat"),
        ("bidirectional", np.True_, "concat"),
        ("bidirectional", False, None),
        ("peephole", np.True_, True),
        ("recurrent_dropout", 0, 0.0),
    ],
)
def test_options_are_kept_as_python_has_them(name, given, kept):
    value = getattr(Options(**{name: given}), name)
    assert value == kept
    assert type(value) is type(kept)
    if type(kept) is tuple:
        assert {type(number) for number in value} == {float}


# --- what is refused: by every way in, before anything is drawn ---

BAD_OPTIONS = [
    ("num_layers", 0, ValueError, "num_layers is 0; expected at least 1"),
    ("num_layers", 2.0, TypeError, "num_layers is 2.0; expected an integer"),
    ("num_layers", True, TypeError, "num_layers is True; expected an integer"),
    ("num_layers", 2**16 + 1, ValueError, "num_layers is 65537; expected at most 65536"),
    ("num_layers", 10**4000, ValueError, "num_layers is 10{17}[.]{3}0+; expected at most 65536"),
    ("bidirectional", 1, ValueError, "bidirectional is 1; expected None, 'concat', 'sum', True or False"),
    ("bidirectional", "mean", ValueError, "bidirectional is 'mean'; expected None, 'concat', 'sum'"),
    ("bidirectional", np.zeros(2), ValueError, "bidirectional is array"),
    ("go_backwards", 1, TypeError, "go_backwards is 1; expected True or False"),
    ("proj_size", 0, ValueError, "proj_size is 0; expected at least 1"),
    ("proj_size", 5, ValueError, "proj_size is 5; expected less than hidden_dim, which is 5"),
    ("proj_size", 1.5, TypeError, "proj_size is 1.5; expected an integer"),
    ("peephole", None, TypeError, "peephole is None; expected True or False"),
    ("layer_norm", "no", TypeError, "layer_norm is 'no'; expected True or False"),
    ("coupled_gates", 0, TypeError, "coupled_gates is 0; expected True or False"),
    ("cell_clip", 0, ValueError, "cell_clip is 0.0; expected a finite number above 0"),
    ("cell_clip", -1, ValueError, "cell_clip is -1.0; expected a finite number"),
    ("cell_clip", np.inf, ValueError, "cell_clip is inf; expected a finite number"),
    ("cell_clip", True, TypeError, "cell_clip is True; expected a number"),
    ("use_bias", "yes", TypeError, "use_bias is 'yes'; expected True or False"),
    ("forget_bias", np.nan, ValueError, "forget_bias is nan; expected a finite number$"),
    ("forget_bias", "1", TypeError, "forget_bias is '1'; expected a number"),
    ("forget_bias", 1e39, ValueError, "forget_bias is 1e.39; float32 holds no number of that size"),
    ("gate_activation", "tanh", ValueError, "gate_activation is 'tanh'; expected one of 'sigmoid', 'hard_sigmoid'"),
    ("cell_activation", "sigmoid", ValueError, "cell_activation is 'sigmoid'; expected one of 'tanh', 'identity'"),
    ("cell_activation", None, ValueError, "cell_activation is None"),
    ("learn_initial_state", 1.0, TypeError, "learn_initial_state is 1.0; expected True or False"),
    ("dropout", 1, ValueError, "dropout is 1.0; expected a finite number of at least 0 and below 1"),
    ("dropout", 0.5, ValueError, "dropout is 0.5 and num_layers is 1; expected 0.0"),
    ("recurrent_dropout", -0.1, ValueError, "recurrent_dropout is -0.1; expected"),
    ("recurrent_dropout", np.nan, ValueError, "recurrent_dropout is nan"),
    ("zoneout", 1.0, ValueError, "zoneout is 1.0; expected a finite number of at least 0 and below 1"),
    ("zoneout", (0.1, 1.5), ValueError, "zoneout is 1.5; expected"),
    ("zoneout", (0.1, 0.1, 0.1), ValueError, r"zoneout is \(0.1, 0.1, 0.1\); expected a number, or a pair for h and C"),
    ("zoneout", "half", TypeError, "zoneout is 'half'; expected a number"),
    ("zoneout", None, TypeError, "zoneout is None; expected a number"),
    ("weight_dropout", "x", TypeError, "weight_dropout is 'x'; expected a number"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD_OPTIONS, ids=lambda value: str(value)[:20])
def test_bad_options_are_named(name, value, error, message):
    before = np.random.get_state()[1].copy()
    for make in (lambda **options: LSTM(3, 5, **options), lambda **options: LSTMNetwork(3, 5, 2, **options)):
        with pytest.raises(error, match=message):
            make(**{name: value})
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("merge", ["concat", "sum"])
def test_a_bidirectional_layer_does_not_go_backwards(merge):
    with pytest.raises(ValueError, match=f"go_backwards is True and bidirectional is '{merge}'; expected one of them"):
        Options(go_backwards=True, bidirectional=merge)


@pytest.mark.parametrize("without", ["coupled_gates", "use_bias"])
def test_there_is_no_forget_bias_without_b_f(without):
    options = {without: without == "coupled_gates", "num_layers": 2}
    with pytest.raises(ValueError, match=rf"^forget_bias is 1.0 and {without} is .*; expected None: there is no b_f$"):
        LSTM(3, 5, forget_bias=1.0, **options)
    assert "b_f" not in LSTM(3, 5, forget_bias=None, **options).named_parameters()


NAMES = [
    ({"layers": 2}, "layers is not an argument; did you mean num_layers?"),
    ({"n_layers": 2}, "n_layers is not an argument; did you mean num_layers?"),
    ({"num_layer": 2}, "num_layer is not an argument; did you mean num_layers?"),
    ({"hidden_size": 5}, "hidden_size is not an argument; did you mean hidden_dim?"),
    ({"hiden_dim": 5}, "hiden_dim is not an argument; did you mean hidden_dim?"),
    ({"units": 5}, "units is not an argument; did you mean hidden_dim?"),
    ({"hidden_units": 5}, "hidden_units is not an argument; did you mean hidden_dim?"),
    ({"input_size": 3}, "input_size is not an argument; did you mean input_dim?"),
    ({"bias": False}, "bias is not an argument; did you mean use_bias?"),
    ({"recurent_dropout": 0.1}, "recurent_dropout is not an argument; did you mean recurrent_dropout?"),
    ({"drop_out": 0.1}, "drop_out is not an argument; did you mean dropout?"),
    ({"activation": "relu"}, "activation is not an argument; did you mean cell_activation?"),
    ({"recurrent_activation": "x"}, "recurrent_activation is not an argument; did you mean gate_activation?"),
    (
        {"unit_forget_bias": True},
        "unit_forget_bias is not an argument; forget_bias=1.0 starts b_f at 1, ",
    ),
    ({"proj": 2}, "proj is not an argument; did you mean proj_size?"),
    ({"projection": 2}, "projection is not an argument; did you mean proj_size?"),
    ({"batch_first": True}, "batch_first is not an argument; X is (N, T, input_dim) always"),
    ({"return_sequences": True}, "return_sequences is not an argument; LSTM.forward always returns the out"),
    ({"xyz": 1}, "xyz is not an argument; expected some of input_dim, hidden_dim, "),
]


@pytest.mark.parametrize(("given", "message"), NAMES, ids=lambda value: value if isinstance(value, str) else "")
def test_an_unknown_name_gets_a_hint(given, message):
    for kind in (LSTM, LSTMNetwork, parameter_layout):  # whether sizes are missing or not
        for sizes in ((), (3, 5, 2)[: 2 if kind is LSTM else 3]):
            with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
                kind(*sizes, **given)


OTHER_NAMES = [
    (
        lambda: LSTMNetwork(input_size=3, hidden_size=8, output_size=1),
        "input_size is not an argument; did you mean input_",
    ),
    (lambda: LSTMNetwork(3, 8, output_size=1), "output_size is not an argument; did you mean output_dim?"),
    (lambda: LSTM(3, 8, output_size=1), "output_size is not an argument; only LSTMNetwork has a head"),
    (lambda: LSTM(3, 8, output_dim=1), "output_dim is not an argument; only LSTMNetwork has a head"),
    (lambda: LSTMNetwork(3, 8, 1, sed=0), "sed is not an argument; did you mean seed?"),
    (lambda: LSTMCell(3, num_units=8), "num_units is not an argument; did you mean hidden_dim?"),
    (
        lambda: LSTMCell(3, 8, num_layers=2),
        "num_layers is not an argument; expected some of input_dim, hidden_dim, dtype",
    ),
    (
        lambda: LSTMCell(3, 8, layers=2),
        "layers is not an argument; expected some of input_dim, hidden_dim, dtype, init, s",
    ),
]

NETWORK = LSTMNetwork(3, 8, 1)
CALLS = {
    "train": train,
    "predict": NETWORK.predict,
    "gradient": NETWORK.gradient,
    "LSTM": LSTM,
    "LSTMNetwork": LSTMNetwork,
    "Adam": Adam,
    "SGD": SGD,
    "Forecaster": Forecaster,
}
FOREIGN = [
    ("train", "lr", "pass optimizer=Adam(learning_rate=...) to train"),
    ("train", "learning_rate", "pass optimizer=Adam(learning_rate=...) to train"),
    ("train", "num_epochs", "did you mean epochs?"),
    ("train", "n_epochs", "did you mean epochs?"),
    ("train", "epoch", "did you mean epochs?"),
    ("train", "validation_split", "did you mean validation_data?"),
    ("gradient", "targets", "did you mean Y?"),
    ("gradient", "target", "readout is an argument of LSTMNetwork"),
    ("train", "target", "readout is an argument of LSTMNetwork"),
    ("train", "readout", "readout is an argument of LSTMNetwork"),
    ("predict", "target", "did you mean readout?"),
    ("LSTMNetwork", "target", "did you mean readout?"),
    ("LSTM", "target", "readout is an argument of LSTMNetwork"),
    ("Adam", "lr", "did you mean learning_rate?"),
    ("Adam", "eps", "did you mean epsilon?"),
    ("Adam", "betas", "pass beta1 and beta2 to Adam"),
    ("SGD", "lr", "did you mean learning_rate?"),
    ("SGD", "weight_decay", "expected some of learning_rate, momentum"),
    ("Forecaster", "hidden_size", "did you mean hidden_dim?"),
    ("Forecaster", "hidden", "did you mean hidden_dim?"),
    ("Forecaster", "units", "did you mean hidden_dim?"),
    ("Forecaster", "windows", "did you mean window?"),
    ("Forecaster", "validation_split", "did you mean validation?"),
    ("Forecaster", "num_layers", "expected some of target, inputs, time"),
]


@pytest.mark.parametrize(("call", "name", "hint"), FOREIGN)
def test_functions_and_optimizers_hint_too(call, name, hint):
    with pytest.raises(TypeError, match=f"^{name} is not an argument; {re.escape(hint)}"):
        CALLS[call](**{name: 1})


@pytest.mark.parametrize(("call", "message"), OTHER_NAMES)
def test_hints_are_of_what_a_class_takes(call, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        call()


def test_subclasses_have_arguments_of_their_own():
    class Mine(LSTMNetwork):
        def __init__(self, units, layers):
            super().__init__(3, units, 1, num_layers=layers)

    assert Mine(units=4, layers=2).options.num_layers == 2
    assert list(inspect.signature(LSTMNetwork).parameters)[:4] == ["input_dim", "hidden_dim", "output_dim", "readout"]


def test_the_layout_is_of_valid_options_too():
    with pytest.raises(ValueError, match="num_layers is 2147483648; expected at most 65536"):
        parameter_layout(2, 3, num_layers=2**31)
    with pytest.raises(ValueError, match="proj_size is 9"):
        parameter_layout(3, 5, 2, proj_size=9)
    with pytest.raises(ValueError, match="output_dim is 0"):
        parameter_layout(3, 5, 0)


# --- what follows from them ---


def architecture(*sizes, **options):
    return Architecture(*sizes, *[None] * (3 - len(sizes)), Options(**options))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (4, 5, 1, 5)),
        ({"coupled_gates": True}, (3, 5, 1, 5)),
        ({"proj_size": 2}, (4, 2, 1, 2)),
        ({"bidirectional": "sum"}, (4, 5, 2, 5)),
        ({"bidirectional": "concat"}, (4, 5, 2, 10)),
        ({"bidirectional": "concat", "proj_size": 2}, (4, 2, 2, 4)),
    ],
)
def test_widths(options, expected):
    made = architecture(3, 5, 2, **options)
    assert (made.gates, made.state_dim, made.directions, made.features) == expected


def test_cells_come_layer_by_layer():
    assert architecture(3, 5).cells == (Cell(0, False, 3, ""),)
    assert architecture(3, 5, go_backwards=True).cells == (Cell(0, False, 3, ""),)
    assert architecture(3, 5, num_layers=2, proj_size=4).cells == (Cell(0, False, 3, ""), Cell(1, False, 4, "_l1"))
    assert architecture(3, 5, num_layers=2, bidirectional="concat").cells == (
        Cell(0, False, 3, ""),
        Cell(0, True, 3, "_reverse"),
        Cell(1, False, 10, "_l1"),
        Cell(1, True, 10, "_l1_reverse"),
    )


@pytest.mark.parametrize("name", [*EVERY_OPTION, "go_backwards", "forget_bias"])
def test_one_option_makes_a_network_that_is_not_plain(name):
    value = EVERY_OPTION.get(name, 1.0 if name == "forget_bias" else True)
    layers = {"num_layers": 2} if name == "dropout" else {}
    assert architecture(3, 5, 2, **{name: value}, **layers).is_plain == (name == "forget_bias")


def test_sizes():
    assert architecture(3, 5).sizes == (3, 5)
    assert architecture(3, 5, 2).sizes == (3, 5, 2)
    assert architecture(np.int32(3), 5, num_layers=2).sizes == (3, 5)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_copies_are_equal(protocol):
    made = architecture(3, 5, 2, **EVERY_OPTION)
    before = pickle.dumps(made, protocol)
    assert len(made.cells) == 6
    assert pickle.dumps(made, protocol) == before  # what follows from the fields is not kept
    twin = pickle.loads(before)
    assert twin == made == copy.deepcopy(made)
    assert twin.cells == made.cells
    assert twin != architecture(3, 5, 2)
