"""Every option of the compiled layers: against the oracle alone and in pairs, and against themselves bit for bit."""

import functools
import itertools

import numpy as np
import pytest

from lstm_ext import LSTM, LSTMNetwork, _kernels, _stack, layers, reference

DTYPES = ["float32", "float64"]
# Some twice what is measured; the README's figures are of whole vectors. Layer norm among other options may divide by
# small deviations.
FORWARD = {"float32": 1e-6, "float64": 1e-14}
GRADIENT = {"float32": 5e-6, "float64": 1e-14}
NORM_AND_OTHERS = 1e-12

# Each is an option with one of its values; those that need another have it.
VARIANTS = {
    "layers": {"num_layers": 3},
    "concat": {"bidirectional": "concat"},
    "sum": {"bidirectional": "sum"},
    "go_backwards": {"go_backwards": True},
    "projection": {"proj_size": 3},
    "peephole": {"peephole": True},
    "layer_norm": {"layer_norm": True},
    "coupled": {"coupled_gates": True},
    "clip": {"cell_clip": 0.3},
    "no_bias": {"use_bias": False},
    "hard_sigmoid": {"gate_activation": "hard_sigmoid"},
    "relu": {"cell_activation": "relu"},
    "identity": {"cell_activation": "identity"},
    "learned_states": {"learn_initial_state": True},
    "dropout": {"num_layers": 2, "dropout": 0.4},
    "recurrent_dropout": {"recurrent_dropout": 0.3},
    "zoneout": {"zoneout": (0.2, 0.3)},
    "zoneout_C": {"zoneout": (0.0, 0.3)},
    "weight_dropout": {"weight_dropout": 0.3},
}
# N, T, I, H: odd on purpose; with the batch in the lanes, and with a tail of every vector and tile
SHAPES = [(3, 5, 2, 5), (17, 7, 4, 13), (7, 6, 3, 34), (1, 9, 7, 20), (34, 4, 3, 6)]
WAYS = ["whole", "lengths", "mask", "list"]


def fits(names):
    options = [VARIANTS[name] for name in names]
    given = [key for option in options for key in option if key != "num_layers"]
    return len(set(given)) == len(given) and not {"go_backwards", "bidirectional"} <= set(given)


ALONE = [(), *((name,) for name in VARIANTS)]
PAIRS = list(filter(fits, itertools.combinations(VARIANTS, 2)))
SEVERAL = [
    ("layers", "concat", "projection", "peephole", "dropout", "recurrent_dropout", "learned_states"),
    ("layers", "sum", "layer_norm", "coupled", "zoneout", "weight_dropout", "no_bias"),
    ("go_backwards", "projection", "peephole", "layer_norm", "clip", "relu", "hard_sigmoid", "zoneout", "dropout"),
]


def options_of(names):
    options = {}
    for name in names:
        options |= VARIANTS[name]
    return options


class Case:
    """A layer with random weights, its twin among the oracles, and arguments for both."""

    def __init__(self, names, number, dtype="float64", way=None):
        rng = np.random.default_rng(number)
        N, T, I, H = SHAPES[number % len(SHAPES)]
        way = way or WAYS[number // 2 % len(WAYS)]
        self.divides = "layer_norm" in names and len(names) > 1
        self.layer = LSTM(I, H, dtype=dtype, seed=number, **options_of(names))
        self.layer.parameters += rng.uniform(-0.1, 0.1, self.layer.parameters.shape).astype(dtype)
        self.oracle = reference.LSTM(I, H, dtype="float64", **options_of(names))
        self.oracle.parameters = self.layer.parameters
        self.X = rng.standard_normal((N, T, I))
        lengths = rng.integers(1, T + 1, N)
        lengths[rng.integers(N)] = T
        self.arguments = {"dropout_seed": number if number % 3 else None}
        if way == "lengths":
            self.arguments["lengths"] = lengths
        elif way == "list":
            self.X = [x[:n] for x, n in zip(self.X, lengths, strict=True)]
        elif way == "mask":
            self.arguments["mask"] = rng.random((N, T)) < 0.6
            self.arguments["mask"][np.arange(N), rng.integers(0, T, N)] = True
        cells, R = len(self.layer.architecture.cells), self.layer.architecture.state_dim
        shape = (N,) if cells == 1 else (cells, N)
        self.states = [rng.standard_normal((*shape, width)) for width in (R, H)] if number % 2 else [None, None]
        self.dH = rng.standard_normal((N, T, self.layer.architecture.features))
        self.dlast = [rng.standard_normal((*shape, width)) for width in (R, H)]

    def run(self, layer, **threads):
        """Return everything that forward and backward return, by name."""
        forward = layer.forward(self.X, *self.states, **self.arguments, return_tape=True, **threads)
        H, (h, C), tape = forward
        return {"H": H, "h": h, "C": C} | layer.backward(tape, self.dH, *self.dlast, **threads)._asdict()

    def results(self, threads=1):
        return list(self.run(self.layer, num_threads=threads).values())


def assert_agrees(case, dtype, threads=1, expected=None):
    actual, expected = case.run(case.layer, num_threads=threads), expected or case.run(case.oracle)
    for name, theirs in expected.items():
        ours = actual[name]
        assert ours.shape == theirs.shape, name
        assert ours.dtype == dtype, name
        tolerance = NORM_AND_OTHERS if case.divides else (FORWARD if name in "HhC" else GRADIENT)[dtype]
        error = np.linalg.norm(ours.astype(float) - theirs) / (np.linalg.norm(theirs) or 1)
        assert error <= tolerance, f"{name}: relative error {error}"


def names_of(combination):
    return "+".join(combination) or "plain"


@functools.cache  # once for all sets
def expected_alone(names, number, dtype, way):
    case = Case(names, number, dtype, way)
    return case.run(case.oracle)


# Several at once in double alone: divided by small deviations, one rounding of a float grows past any bound.
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("names", "dtype"),
    [*itertools.product(ALONE, DTYPES), *((names, "float64") for names in SEVERAL)],
    ids=lambda value: value if isinstance(value, str) else names_of(value),
)
def test_an_option_agrees_with_the_oracle(rounding_isa, names, dtype, way):
    for k in range(2):
        given = (names, len(names) + 4 * k + WAYS.index(way), dtype, way)
        assert_agrees(Case(*given), dtype, expected=expected_alone(*given))


@pytest.mark.parametrize(("number", "names"), list(enumerate(PAIRS)), ids=[names_of(pair) for pair in PAIRS])
def test_pairs_of_options_agree_with_the_oracle(restored_isa, number, names):
    isas = _kernels.available_isas()
    _kernels.use_isa(isas[number % len(isas)])
    for k in range(2):
        assert_agrees(Case(names, 7 * number + k), "float64", threads=1 + (number + k) % 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", ALONE + SEVERAL, ids=names_of)
def test_bits_are_those_of_every_set(names, dtype, assert_same_on_every_fma_isa):
    for number in (1, 2, 5):  # whole, with lengths, with a mask
        assert_same_on_every_fma_isa(Case(names, number, dtype).results)


@pytest.mark.parametrize("names", ALONE + SEVERAL, ids=names_of)
def test_bits_are_those_of_any_number_of_threads(names):
    for number in (1, 2, 7):
        case = Case(names, number, "float32")
        alone = case.results()
        for threads in (2, 3, 4):
            for ours, theirs in zip(case.results(threads), alone, strict=True):
                assert ours.tobytes() == theirs.tobytes()


def test_threads_have_their_own_rows_of_what_they_work_in():
    """Products that wait for a mask, and others that wait to be put backwards: in one array, of different widths."""
    rng = np.random.default_rng(0)
    layer = LSTM(80, 8, seed=1, recurrent_dropout=0.3, go_backwards=True)
    X, lengths = rng.standard_normal((64, 30, 80)), rng.integers(15, 31, 64)
    H, _, tape = layer.forward(X, lengths=lengths, dropout_seed=1, return_tape=True)
    expected = layer.backward(tape, np.ones_like(H), num_threads=1)
    for _ in range(100):  # what they must not do depends on who is first
        for ours, theirs in zip(layer.backward(tape, np.ones_like(H), num_threads=2), expected, strict=True):
            assert ours.tobytes() == theirs.tobytes()


def test_threads_have_their_own_panels_of_the_batch_in_the_lanes():
    layer = LSTM(3, 5, seed=1)
    X = np.random.default_rng(0).standard_normal((2000, 20, 3)).astype("f")
    H, _, tape = layer.forward(X, return_tape=True, num_threads=1)
    assert tape._stack.by_lanes == (2000,)
    expected = layer.backward(tape, np.ones_like(H), num_threads=1)
    for _ in range(20):
        ours, _, tape = layer.forward(X, return_tape=True, num_threads=2)
        assert ours.tobytes() == H.tobytes()
        for ours, theirs in zip(layer.backward(tape, np.ones_like(H), num_threads=2), expected, strict=True):
            assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("way", ["lengths", "mask"])
def test_padding_after_sequences_of_one_length_changes_no_gradient_in_the_lanes(way):
    layer = LSTM(3, 5, seed=1)
    rng = np.random.default_rng(0)
    X, dH = rng.standard_normal((32, 7, 3)).astype("f"), rng.standard_normal((32, 7, 5)).astype("f")
    padding = {"lengths": [5] * 32} if way == "lengths" else {"mask": np.tile(np.arange(7) < 5, (32, 1))}
    H, _, tape = layer.forward(X, **padding, return_tape=True)
    expected, _, tape_without = layer.forward(X[:, :5], return_tape=True)
    assert tape._stack.by_lanes == tape_without._stack.by_lanes == (32,)
    assert np.array_equal(H[:, :5], expected)
    if way == "mask":
        dH[:, 5:] = 0  # what masked steps repeat has a gradient too
    ours, theirs = layer.backward(tape, dH), layer.backward(tape_without, dH[:, :5])
    assert np.array_equal(ours.dX[:, :5], theirs.dX)
    assert not ours.dX[:, 5:].any()
    for name in ("dh0", "dC0", "parameters"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.mark.parametrize("names", [*ALONE, ("layers", "concat", "projection")], ids=names_of)
def test_a_large_batch_of_a_large_layer_is_shared_step_by_step(names):
    """Weights too large for each thread to read them all, so that units and rows of one step are shared."""
    options = options_of(names) | ({"num_layers": 1, "dropout": 0.0} if "dropout" in names else {})
    layer = LSTM(40, 330, seed=1, **options)
    X = np.random.default_rng(0).standard_normal((7, 3, 40)).astype("f")

    def results(threads):
        H, (h, C), tape = layer.forward(X, dropout_seed=3, return_tape=True, num_threads=threads)
        return [H, h, C, *layer.backward(tape, np.ones_like(H), num_threads=threads)]

    alone = results(1)
    for ours, theirs in zip(results(3), alone, strict=True):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("names", ALONE + SEVERAL, ids=names_of)
def test_a_row_does_not_know_its_batch(names):
    """Whatever lengths others have, and whether it is sorted among them."""
    case = Case(names, 6, "float32", "list")
    case.arguments["dropout_seed"] = None  # masks know the place in the batch
    H, (h, C) = case.layer.forward(case.X)
    for n, x in enumerate(case.X):
        H_n, (h_n, C_n) = case.layer.forward(x[None])
        assert H[n, : len(x)].tobytes() == H_n[0].tobytes()
        assert not H[n, len(x) :].any()
        for ours, theirs in ((h, h_n), (C, C_n)):
            assert ours[..., n, :].tobytes() == theirs[..., 0, :].tobytes()


FORWARDS = [names for names in ALONE if not {"bidirectional", "go_backwards"} & options_of(names).keys()]


@pytest.mark.parametrize("names", FORWARDS, ids=names_of)
def test_chunks_are_the_whole(names):
    layer = LSTM(3, 13, seed=5, **options_of(names))
    X = np.random.default_rng(0).standard_normal((5, 11, 3)).astype("f")
    H, last = layer.forward(X)
    parts, state = [], (None, None)
    for start, stop in ((0, 1), (1, 5), (5, 11)):
        part, state = layer.forward(X[:, start:stop], *state)
        parts.append(part)
    assert np.concatenate(parts, axis=1).tobytes() == H.tobytes()
    assert all(ours.tobytes() == theirs.tobytes() for ours, theirs in zip(state, last, strict=True))


@pytest.mark.parametrize("output_dim", [3, None])
@pytest.mark.parametrize("names", FORWARDS, ids=names_of)
def test_streams_are_the_whole(isa, names, output_dim):
    network = LSTMNetwork(3, 13, output_dim, seed=5, **options_of(names))
    network.parameters += np.random.default_rng(1).uniform(-0.1, 0.1, network.parameters.shape).astype("f")
    X = np.random.default_rng(0).standard_normal((5, 4, 3)).astype("f")
    state = network.initial_state(5)
    outputs = [network.step(X[:, t], state)[0] for t in range(4)]
    assert np.stack(outputs, axis=1).tobytes() == network.predict(X, readout="steps").tobytes()
    layer = LSTM(3, 13, seed=5, **options_of(names))
    layer.parameters = network.parameters[: layer.parameters.size]
    for ours, theirs in zip((state.h, state.C), layer.forward(X)[1], strict=True):
        assert ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("options", [{"bidirectional": "sum"}, {"go_backwards": True}])
def test_streams_run_forwards(options):
    with pytest.raises(ValueError, match="begins at the end of a sequence"):
        LSTMNetwork(3, 5, 2, **options).initial_state()


@pytest.mark.parametrize("options", [{}, {"learn_initial_state": True}, {"num_layers": 2, "learn_initial_state": True}])
@pytest.mark.parametrize("given", [0, 1])
def test_one_state_alone_may_be_given(given, options):
    case = Case((), 1)
    case.layer = LSTM(2, 5, dtype="float64", seed=0, **options)
    case.layer.parameters += 0.1
    case.oracle = reference.LSTM(2, 5, dtype="float64", **options)
    case.oracle.parameters = case.layer.parameters
    rng, shape = np.random.default_rng(3), (2, 3, 5) if "num_layers" in options else (3, 5)
    case.X, case.dH, case.arguments = rng.standard_normal((3, 4, 2)), rng.standard_normal((3, 4, 5)), {}
    case.states, case.dlast = [None, None], [None, None]
    case.states[given] = rng.standard_normal(shape)
    case.dlast[given] = rng.standard_normal(shape)
    assert_agrees(case, "float64")


@pytest.mark.parametrize("segment", [1, 3, 7, 100])
@pytest.mark.parametrize("names", ALONE + SEVERAL, ids=names_of)
def test_segments_change_no_bit(monkeypatch, names, segment):
    """Activations that are computed again are the same; so are sums that are cut."""
    for number in (0, 1, 2, 7):
        case = Case(names, number, "float32")
        whole = case.results()
        make = _stack.LayerStack
        with monkeypatch.context() as patch:
            patch.setattr(layers._stack, "LayerStack", lambda *a, make=make, **k: make(*a, **k, segment=segment))
            for ours, theirs in zip(case.results(), whole, strict=True):
                assert ours.tobytes() == theirs.tobytes()


def test_a_tape_keeps_what_it_saw():
    for names in ALONE + SEVERAL:
        case = Case(names, 7, "float32")
        *_, tape = case.layer.forward(case.X, *case.states, **case.arguments, return_tape=True)
        first = case.layer.backward(tape, case.dH, *case.dlast)
        case.layer.parameters += 1
        for ours, theirs in zip(first, case.layer.backward(tape, case.dH, *case.dlast), strict=True):
            assert ours.tobytes() == theirs.tobytes(), names


@pytest.mark.parametrize("segment", [1, 4])
def test_a_tape_with_segments_can_be_used_again(monkeypatch, segment):
    case = Case((), 7, "float32")
    expected = case.run(case.layer)
    make = _stack.LayerStack
    monkeypatch.setattr(layers._stack, "LayerStack", lambda *a, **k: make(*a, **k, segment=segment))
    *_, tape = case.layer.forward(case.X, *case.states, **case.arguments, return_tape=True)
    for _ in range(2):
        for name, ours in case.layer.backward(tape, case.dH, *case.dlast)._asdict().items():
            assert ours.tobytes() == expected[name].tobytes()


@pytest.mark.parametrize("names", ALONE + SEVERAL, ids=names_of)
def test_a_tape_keeps_the_weights_as_they_were(names):
    case = Case(names, 7, "float32")
    expected = case.run(case.layer)
    *_, tape = case.layer.forward(case.X, *case.states, **case.arguments, return_tape=True)
    case.layer.parameters *= -2
    for name, ours in case.layer.backward(tape, case.dH, *case.dlast)._asdict().items():
        assert ours.tobytes() == expected[name].tobytes()


def test_threads_keep_to_their_part_of_the_scratch():
    """Where products of both dh and dX go through it, and are not of one width."""
    layer = LSTM(48, 16, seed=0, recurrent_dropout=0.3)
    rng = np.random.default_rng(0)
    X, dH = rng.standard_normal((64, 60, 48)), rng.standard_normal((64, 60, 16))
    *_, tape = layer.forward(X, lengths=rng.integers(59, 61, 64), dropout_seed=3, return_tape=True)
    alone = layer.backward(tape, dH, num_threads=1)
    for _ in range(40):
        for ours, theirs in zip(layer.backward(tape, dH, num_threads=2), alone, strict=True):
            assert ours.tobytes() == theirs.tobytes()


def test_masks_of_dropout_are_those_of_their_seed():
    layer = LSTM(3, 13, seed=0, num_layers=2, dropout=0.5)
    X = np.ones((4, 5, 3), "f")
    runs = [layer.forward(X, dropout_seed=seed)[0].tobytes() for seed in (1, 1, 2, None)]
    assert runs[0] == runs[1]
    assert len(set(runs)) == 3


@pytest.mark.parametrize("kind", [LSTM, reference.LSTM])
def test_a_clipped_state_has_a_derivative_up_to_the_limit(kind):
    """At the limit too, from either side; none beyond it."""
    layer = kind(1, 4, dtype="float64", cell_clip=0.5)
    parameters = np.zeros(layer.parameters.shape)
    parameters[-12:-8] = 60  # b_f: the forget gate is 1, and C~ is 0
    layer.parameters = parameters
    C0 = np.array([[0.5, -0.5, np.nextafter(0.5, 1), np.nextafter(-0.5, -1)]])
    *_, (_, C), tape = layer.forward(np.zeros((1, 1, 1)), C0=C0, return_tape=True)
    assert C.tolist() == [[0.5, -0.5, 0.5, -0.5]]
    assert layer.backward(tape, dC_T=np.ones((1, 4))).dC0.tolist() == [[1, 1, 0, 0]]


def test_inputs_are_never_modified():
    case = Case(("layers", "concat", "projection"), 1, "float64")
    before = [np.copy(a) for a in (case.X, *case.states, case.dH, *case.dlast, case.layer.parameters)]
    case.results()
    after = (case.X, *case.states, case.dH, *case.dlast, case.layer.parameters)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


LAYER = LSTM(3, 5, num_layers=2, learn_initial_state=True, seed=0)
ONES = np.ones((2, 4, 3))
BAD_CALLS = {
    "a state of one cell": (lambda: LAYER.forward(ONES, np.zeros((2, 5))), ValueError, r"h0 has shape \(2, 5\)"),
    "a state of another width": (lambda: LAYER.forward(ONES, C0=np.zeros((2, 2, 6))), ValueError, "C0 has shape"),
    "a complex state": (lambda: LAYER.forward(ONES, np.zeros((2, 2, 5)) * 1j), TypeError, "h0 has dtype complex"),
    "a state of words": (lambda: LAYER.forward(ONES, np.full((2, 2, 5), "a")), TypeError, "h0 has dtype"),
    "lengths of zero": (lambda: LAYER.forward(ONES, lengths=[0, 4]), ValueError, r"lengths\[0\] is 0"),
    "negative lengths": (lambda: LAYER.forward(ONES, lengths=[1, -1]), ValueError, r"lengths\[1\] is -1"),
    "lengths past the end": (lambda: LAYER.forward(ONES, lengths=[1, 5]), ValueError, r"lengths\[1\] is 5"),
    "lengths of halves": (lambda: LAYER.forward(ONES, lengths=[1.0, 2.5]), TypeError, "lengths has dtype float64"),
    "lengths of others": (lambda: LAYER.forward(ONES, lengths=[1]), ValueError, r"lengths has shape \(1,\)"),
    "lengths and a mask": (
        lambda: LAYER.forward(ONES, lengths=[1, 2], mask=np.ones((2, 4), bool)),
        ValueError,
        "lengths and mask",
    ),
    "lengths of a list": (lambda: LAYER.forward(list(ONES), lengths=[1, 2]), ValueError, "lengths is given"),
    "a mask of numbers": (lambda: LAYER.forward(ONES, mask=np.ones((2, 4))), TypeError, "mask has dtype float64"),
    "a mask of nothing": (lambda: LAYER.forward(ONES, mask=np.zeros((2, 4), bool)), ValueError, r"mask\[0\]"),
    "a negative seed": (lambda: LAYER.forward(ONES, dropout_seed=-1), ValueError, "dropout_seed is -1"),
    "a seed of words": (lambda: LAYER.forward(ONES, dropout_seed="a"), TypeError, "dropout_seed is 'a'"),
    "a seed too large": (lambda: LAYER.forward(ONES, dropout_seed=2**64), ValueError, "dropout_seed is"),
    "another layer's tape": (
        lambda: LAYER.backward(LSTM(3, 5, num_layers=2, seed=0).forward(ONES, return_tape=True)[2]),
        ValueError,
        "tape is of a layer",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_arguments_are_named(name):
    call, error, message = BAD_CALLS[name]
    before = LAYER.parameters.copy()
    with pytest.raises(error, match=message):
        call()
    assert np.array_equal(LAYER.parameters, before)


def test_what_is_past_the_end_does_not_matter():
    layer = LSTM(3, 5, bidirectional="concat", seed=0)
    X = np.random.default_rng(0).standard_normal((2, 4, 3)).astype("f")
    padded = X.copy()
    padded[0, 2:] = np.nan
    ours, theirs = (layer.forward(x, lengths=[2, 4])[0] for x in (padded, X))
    assert np.array_equal(ours, theirs)
    *_, tape = layer.forward(padded, lengths=[2, 4], return_tape=True)
    dH = np.ones((2, 4, 10))
    dH[0, 2:] = np.inf
    gradients = layer.backward(tape, dH)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert not gradients.dX[0, 2:].any()
