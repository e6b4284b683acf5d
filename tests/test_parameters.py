"""The flat parameter vector: the layout that options ask for, and the initial weights by name."""

import numpy as np
import pytest

from lstm_ext import LSTM, LSTMCell, LSTMNetwork, Options, from_reference, parameter_layout, reference, to_reference
from lstm_ext.options import MAX_LAYERS, Architecture
from lstm_ext.parameters import parameter_count

OPTIONS = [
    {},
    {"use_bias": False},
    {"coupled_gates": True},
    {"peephole": True},
    {"peephole": True, "coupled_gates": True, "use_bias": False},
    {"layer_norm": True, "coupled_gates": True},
    {"proj_size": 2},
    {"learn_initial_state": True, "proj_size": 4},
    {"num_layers": 3},
    {"num_layers": 2, "bidirectional": "concat"},
    {"num_layers": 2, "bidirectional": "sum", "proj_size": 3},
    {"num_layers": 3, "bidirectional": "concat", "proj_size": 3, "peephole": True, "layer_norm": True}
    | {"learn_initial_state": True},
]
NETWORKS = (LSTMNetwork, reference.LSTMNetwork)
LAYERED = [options for options in OPTIONS if options]


def bias_of(forget_bias, options):
    """Return the option where there is a b_f."""
    has_b_f = options.get("use_bias", True) and not options.get("coupled_gates")
    return {"forget_bias": forget_bias} if has_b_f else {}


def shapes(*sizes, **options):
    return {name: shape for name, (_, shape) in parameter_layout(*sizes, **options).items()}


# --- the oracle's ---


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("sizes", [(1, 5, None), (7, 5, 1), (7, 13, 6)])
def test_the_layout_is_the_oracles(sizes, options):
    expected = reference.parameter_layout(*sizes, **options)
    assert list(parameter_layout(*sizes, **options).items()) == list(expected.items())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("init", ["glorot", "keras", "pytorch"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initial_weights_are_the_oracles(dtype, init, options):
    options = options | bias_of(0.1, options)
    ours, oracle = (kind(3, 5, 2, init=init, seed=9, dtype=dtype, **options) for kind in NETWORKS)
    assert ours.parameters.tobytes() == oracle.parameters.tobytes()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("output_dim", [None, 2])
def test_the_oracle_and_back(output_dim, options):
    network = LSTMNetwork(3, 5, output_dim, seed=9, zoneout=(0.25, 0.5), **bias_of(3, options), **options)
    oracle = to_reference(network)
    assert vars(oracle.options) == vars(network.options)
    assert np.array_equal(oracle.parameters, network.parameters)
    twin = from_reference(oracle)
    assert twin.architecture == network.architecture
    assert (twin.dtype, to_reference(network, dtype="float32").dtype) == ("float64", "float32")
    assert np.array_equal(twin.parameters, network.parameters)


# --- layout ---


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("sizes", [(1, 5), (7, 5), (7, 5, 1), (1, 13, 6)])
def test_the_layout_has_no_gaps(sizes, options):
    end = 0
    for offset, (rows, columns) in parameter_layout(*sizes, **options).values():
        assert offset == end
        end += rows * columns
    kind = LSTMNetwork if len(sizes) == 3 else LSTM
    model = kind(*sizes, **options)
    assert model.parameters.shape == (end,)
    assert parameter_count(model.architecture) == end
    for k, (name, view) in enumerate(model.named_parameters().items()):
        view[...] = k
        offset, (rows, columns) = parameter_layout(*sizes, **options)[name]
        assert view.shape == (rows, columns)
        assert (model.parameters[offset : offset + rows * columns] == k).all()


def test_every_weight_of_a_cell_in_its_place():
    everything = {"peephole": True, "layer_norm": True, "proj_size": 3, "learn_initial_state": True}
    assert list(shapes(2, 5, 4, **everything).items()) == [
        *((f"W_{gate}", (5, 5)) for gate in "ifCo"),
        *((f"b_{gate}", (5, 1)) for gate in "ifCo"),
        *((f"p_{gate}", (5, 1)) for gate in "ifo"),
        ("gain_x", (20, 1)),
        ("gain_h", (20, 1)),
        ("gain_C", (5, 1)),
        ("shift_C", (5, 1)),
        ("W_r", (3, 5)),
        ("h_0", (3, 1)),
        ("C_0", (5, 1)),
        ("W_y", (4, 3)),
        ("b_y", (4, 1)),
    ]
    coupled = shapes(2, 5, coupled_gates=True, **everything)
    assert coupled["gain_x"] == coupled["gain_h"] == (15, 1)
    assert shapes(2, 5, **everything).keys() - coupled.keys() == {"W_f", "b_f", "p_f"}
    assert not any(name.startswith("b_") for name in shapes(2, 5, use_bias=False))
    assert "b_y" in shapes(2, 5, 4, use_bias=False)


def test_the_widths_of_layers_and_directions():
    made = shapes(2, 5, 4, num_layers=3, bidirectional="concat", proj_size=3)
    order = ["", "_reverse", "_l1", "_l1_reverse", "_l2", "_l2_reverse"]
    assert [name.removeprefix("W_i") for name in made if name.startswith("W_i")] == order
    assert [name.removeprefix("W_r") for name in made if name.startswith("W_r")] == order
    for suffix in order:
        assert made[f"W_o{suffix}"] == (5, 3 + (2 if "l" not in suffix else 6))
    assert made["W_y"] == (4, 6)
    summed = shapes(2, 5, 4, num_layers=2, bidirectional="sum")
    assert summed["W_i_l1_reverse"] == (5, 10)
    assert summed["W_y"] == (4, 5)


def test_counting_takes_no_longer_for_many_layers():
    architecture = Architecture(3, 5, 2, Options(num_layers=MAX_LAYERS))
    assert parameter_count(architecture) == 4 * 5 * 9 + (MAX_LAYERS - 1) * 4 * 5 * 11 + 12


# --- initial weights ---


def hx(cell, gates="ifCo", suffix="", R=5):
    """Return the columns of h and those of x of all gates, stacked."""
    W = np.vstack([cell[f"W_{gate}{suffix}"] for gate in gates])
    return W[:, :R], W[:, R:]


def is_orthonormal(Q):
    return np.allclose(Q.T @ Q, np.eye(Q.shape[1]), atol=1e-12)


def within(limit, weight):
    """Uniform draws fill their range, and no more: the largest of n is below 0.9 of it with probability 0.9^n."""
    return np.abs(weight).max() <= limit and (weight.size < 100 or np.abs(weight).max() > 0.9 * limit)


@pytest.mark.parametrize("kind", [LSTMCell, LSTM, LSTMNetwork])
@pytest.mark.parametrize("init", ["keras", "pytorch"])
def test_every_model_takes_every_name(kind, init):
    sizes = (3, 5, 2)[: 3 if kind is LSTMNetwork else 2]
    first, second, third = (kind(*sizes, init=init, seed=seed, dtype="float64").parameters for seed in (4, 4, 5))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)
    assert not np.array_equal(first, kind(*sizes, seed=4, dtype="float64").parameters)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("init", ["glorot", "keras", "pytorch"])
def test_what_is_not_drawn(init, options):
    network = LSTMNetwork(3, 5, 2, init=init, seed=0, dtype="float64", **options)
    for name, weight in network.named_parameters().items():
        if name.startswith("W_") or (init == "pytorch" and name.startswith("b_")):
            assert len(np.unique(weight)) == weight.size, name
        else:
            assert (weight == (1 if name.startswith(("b_f", "gain")) else 0)).all(), name


def test_forget_bias():
    for init in ("glorot", "keras"):
        weights = LSTM(3, 5, init=init, forget_bias=-2.5, num_layers=2).named_parameters()
        assert (weights["b_f"] == -2.5).all()
        assert (weights["b_f_l1"] == -2.5).all()
        assert not weights["b_i_l1"].any()
    given, drawn = (LSTM(3, 5, init="pytorch", seed=0, forget_bias=bias) for bias in (-2.5, None))
    assert (given.lstm_cell.b_f == -2.5).all()
    assert len(np.unique(drawn.lstm_cell.b_f)) == 5
    given.lstm_cell.b_f = drawn.lstm_cell.b_f  # nothing else is drawn differently
    assert np.array_equal(given.parameters, drawn.parameters)


def test_forget_bias_by_default():
    assert [LSTM(3, 5, init=init).lstm_cell.b_f[0] for init in ("glorot", "keras", "reference")] == [1, 1, 0]
    for init in ("glorot", "keras", "pytorch"):
        default, one = (LSTM(3, 5, init=init, seed=0, forget_bias=bias).parameters for bias in (None, 1.0))
        assert np.array_equal(default, one) == (init != "pytorch")


@pytest.mark.parametrize("R", [None, 2])
def test_glorot(R):
    network = LSTMNetwork(200, 5, 100, init="glorot", seed=0, dtype="float64", num_layers=2, proj_size=R)
    weights = network.named_parameters()
    R = R or 5
    for gate in "ifCo":
        h, x = hx(weights, gate, R=R)
        assert is_orthonormal(h)
        assert within(np.sqrt(6 / 205), x)
        assert is_orthonormal(hx(weights, gate, "_l1", R)[0])
    assert within(np.sqrt(6 / (R + 100)), weights["W_y"])
    if R == 2:
        assert within(np.sqrt(6 / 7), weights["W_r"])


@pytest.mark.parametrize("options", [{}, {"coupled_gates": True}, {"proj_size": 2, "bidirectional": "concat"}], ids=str)
def test_keras(options):
    network = LSTMNetwork(200, 5, 100, init="keras", seed=0, dtype="float64", **options)
    gates = "iCo" if "coupled_gates" in options else "ifCo"
    R = options.get("proj_size", 5)
    for suffix in ("", "_reverse") if "bidirectional" in options else ("",):
        h, x = hx(network.named_parameters(), gates, suffix, R)
        assert is_orthonormal(h)
        assert not is_orthonormal(h[:5])
        assert within(np.sqrt(6 / (200 + 5 * len(gates))), x)
    F = 2 * R if "bidirectional" in options else R
    assert within(np.sqrt(6 / (F + 100)), network.W_y)


def test_pytorch():
    options = {"num_layers": 2, "bidirectional": "concat", "proj_size": 20}
    network = LSTMNetwork(3, 50, 7, init="pytorch", seed=0, dtype="float64", **options)
    k = 1 / np.sqrt(50)
    for name, weight in network.named_parameters().items():
        if name.endswith("_y"):
            assert within(1 / np.sqrt(40), weight)
        elif name.startswith("b_"):
            assert k < np.abs(weight).max() <= 2 * k  # the sum of two
        else:
            assert within(k, weight)


def test_the_order_of_the_draws():
    """The recipe is a promise: the same seed gives the same weights in every version."""
    rng = np.random.default_rng(7)
    a = np.sqrt(6 / (3 + 20))
    x = rng.uniform(-a, a, (20, 3))
    Q, R = np.linalg.qr(rng.standard_normal((20, 2)))
    h = Q * np.sign(np.diag(R))
    a = np.sqrt(6 / (2 + 5))
    W_r = rng.uniform(-a, a, (2, 5))
    weights = LSTM(3, 5, init="keras", seed=7, dtype="float64", proj_size=2).named_parameters()
    assert np.array_equal(np.hstack(hx(weights, R=2)), np.hstack((h, x)))
    assert np.array_equal(weights["W_r"], W_r)

    rng, k = np.random.default_rng(7), 1 / np.sqrt(5)
    W = rng.uniform(-k, k, (20, 8))
    b = rng.uniform(-k, k, 20) + rng.uniform(-k, k, 20)
    W_y, b_y = rng.uniform(-k, k, (2, 5)), rng.uniform(-k, k, 2)
    network = LSTMNetwork(3, 5, 2, init="pytorch", seed=7, dtype="float64")
    assert np.array_equal(network.parameters, np.concatenate([part.ravel() for part in (W, b, W_y, b_y)]))

    rng = np.random.default_rng(7)
    weights = LSTM(3, 5, seed=7, dtype="float64", proj_size=2).named_parameters()
    for gate in "ifCo":
        a = np.sqrt(6 / 8)
        x = rng.uniform(-a, a, (5, 3))
        Q, R = np.linalg.qr(rng.standard_normal((5, 2)))
        assert np.array_equal(weights[f"W_{gate}"], np.hstack((Q * np.sign(np.diag(R)), x)))
    a = np.sqrt(6 / 7)
    assert np.array_equal(weights["W_r"], rng.uniform(-a, a, (2, 5)))


def test_the_first_layer_of_several_is_that_of_one():
    for init in ("glorot", "keras", "pytorch"):
        one, three = (LSTM(3, 5, init=init, seed=1, num_layers=n).parameters for n in (1, 3))
        assert np.array_equal(three[: one.size], one)


def test_reference_is_the_articles_network_alone():
    for options in LAYERED:
        before = np.random.get_state()[1].copy()
        with pytest.raises(ValueError, match=f"init is 'reference' with .*{next(iter(options))}=.*article"):
            LSTMNetwork(3, 5, 2, init="reference", **options)
        assert np.array_equal(np.random.get_state()[1], before)
    before = np.random.get_state()[1].copy()
    with pytest.raises(ValueError, match=r"^forget_bias is 1.0; expected None with init='reference'"):
        LSTM(3, 5, init="reference", forget_bias=1.0)
    assert np.array_equal(np.random.get_state()[1], before)
    assert not LSTM(3, 5, init="reference").lstm_cell.b_f.any()


def test_an_unknown_name():
    with pytest.raises(ValueError, match="init is 'he'; expected one of 'glorot', 'keras', 'pytorch', 'reference'"):
        LSTM(3, 5, init="he")
