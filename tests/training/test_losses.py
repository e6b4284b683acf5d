"""Losses: the compiled ones against the oracle; what those in Python see and return, and the check of gradients."""

import pydoc
from array import array

import numpy as np
import pytest

from lstm_ext import (
    MAE,
    MSE,
    SGD,
    Adam,
    CrossEntropy,
    LSTMNetwork,
    NonFiniteError,
    _kernels,
    check_gradient,
    reference,
    to_reference,
    train,
)
from lstm_ext.training import losses

X = np.random.default_rng(0).standard_normal((5, 4, 3))
STEPS = np.random.default_rng(1).standard_normal((5, 4, 2))


def squares(outputs, targets):
    if isinstance(outputs, list):
        size = sum(y.size for y in outputs)
        errors = [y - np.asarray(t) for y, t in zip(outputs, targets, strict=True)]
        return sum((e**2).sum() for e in errors) / size, [2 * e / size for e in errors]
    error = outputs - targets
    return np.mean(error**2), 2 * error / error.size


# --- compiled losses ---

TOLERANCES = {"float32": 2e-6, "float64": 1e-14}
TORCH = {"mse": "mse_loss", "mae": "l1_loss", "cross_entropy": "cross_entropy"}  # None where PyTorch has none


def rows_and_targets(loss, n, dtype, rows=1, seed=0):
    """Return outputs (rows, n) and targets of a loss; at every fifth output the error is 0."""
    rng = np.random.default_rng([seed, n])
    y, Y = rng.uniform(-3, 3, (2, rows, n)).astype(dtype)
    Y[:, ::5] = y[:, ::5]
    return y, rng.integers(0, n, rows) if reference.LOSSES[loss].takes_labels else Y


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("n", [1, 2, 13, 17, 34, 70])
@pytest.mark.parametrize("loss", _kernels.LOSSES)
def test_a_loss_is_the_oracles(isa, loss, n, dtype):
    """On a network whose outputs are its b_y, so that its gradient there is the loss's."""
    network = LSTMNetwork(1, 1, n, dtype=dtype)
    network.parameters = np.zeros(network.parameters.size)
    y, Y = rows_and_targets(loss, n, dtype)
    network.b_y[:, 0] = y[0]
    value, gradient = network.gradient(np.zeros((1, 1, 1)), Y, loss=loss)
    expected, slope = reference.LOSSES[loss].value_and_gradient(y.astype(float), Y)
    assert value == pytest.approx(expected, rel=TOLERANCES[dtype], abs=TOLERANCES[dtype])
    assert np.abs(gradient[-n:] - slope[0]).max() <= TOLERANCES[dtype] * np.abs(slope).max()
    if loss == "mae":
        assert not gradient[-n::5].any()


@pytest.mark.parametrize("loss", _kernels.LOSSES)
def test_the_oracles_loss_is_differentiable(loss):
    """By the complex step, where no error is 0."""
    y, Y = rows_and_targets(loss, 7, "float64", rows=3)
    y[:, ::5] += 0.5
    function, _ = reference.LOSSES[loss]
    _, gradient = function(y, Y)
    for place in np.ndindex(y.shape):
        moved = y.astype(complex)
        moved[place] += 1e-30j
        value, _ = function(moved, Y)
        assert value.imag / 1e-30 == pytest.approx(gradient[place], rel=1e-13, abs=1e-16)


@pytest.mark.parametrize("loss", _kernels.LOSSES)
def test_a_loss_has_the_same_bits_on_every_set(loss, assert_same_on_every_fma_isa):
    def results():
        for dtype in TOLERANCES:
            network = LSTMNetwork(3, 5, 19, readout="steps", dtype=dtype, seed=0)
            _, Y = rows_and_targets(loss, 19, dtype, rows=1200)  # more than one block of sums
            X = np.random.default_rng(3).standard_normal((300, 4, 3))
            Y = Y.reshape(300, 4, *Y.shape[1:])
            value, gradient = network.gradient(X, Y, loss=loss)
            yield np.array(value)
            yield gradient

    assert_same_on_every_fma_isa(results)


@pytest.mark.parametrize("readout", ["last", "steps", "mean"])
@pytest.mark.parametrize("loss", _kernels.LOSSES)
def test_a_loss_of_ragged_data_is_the_oracles(loss, readout):
    network, lengths = LSTMNetwork(3, 5, 3, readout=readout, dtype="float64", seed=0), [4, 1, 3]
    sequences = [X[n, :length] for n, length in enumerate(lengths)]
    _, Y = rows_and_targets(loss, 3, "float64", rows=sum(lengths) if readout == "steps" else 3)
    targets = np.split(Y, np.cumsum(lengths)[:-1]) if readout == "steps" else Y
    value, gradient = network.gradient(sequences, targets, loss=loss)
    expected, slope = to_reference(network).gradient(sequences, targets, loss=loss)
    assert value == pytest.approx(expected, rel=1e-12)
    assert np.abs(gradient - slope).max() <= 1e-12 * np.abs(slope).max()
    if readout == "mean":
        return
    still = {"optimizer": SGD(0.0), "epochs": 1, "verbose": False}  # chunks and batches weigh as their targets do
    history = train(network, sequences, targets, loss=loss, tbptt=3, batch_size=2, **still)
    assert history.loss[0] == pytest.approx(value, rel=1e-12)


@pytest.mark.peers
@pytest.mark.parametrize("loss", _kernels.LOSSES)
def test_a_loss_is_pytorchs(loss):
    torch, name = pytest.importorskip("torch"), TORCH[loss]
    if name is None:
        pytest.skip("PyTorch does not have this loss")
    network = LSTMNetwork(3, 4, 7, dtype="float64", seed=0)
    outputs = torch.tensor(network.predict(X), requires_grad=True)
    _, Y = rows_and_targets(loss, 7, "float64", rows=len(X))
    expected = getattr(torch.nn.functional, name)(outputs, torch.tensor(Y))
    expected.backward()
    value, gradient = network.gradient(X, Y, loss=loss)
    assert value == pytest.approx(expected.item(), rel=1e-12)
    assert np.allclose(gradient[-7:], outputs.grad.numpy().sum(axis=0), rtol=1e-12, atol=1e-15)


# --- the form of outputs and targets ---


@pytest.mark.parametrize("tbptt", [None, 3])
@pytest.mark.parametrize("given", ["array", "list", "lengths", "mask", "list of Y"])
def test_outputs_are_a_list_where_x_is_no_plain_array(given, tbptt):
    """All sequences have one length: what X is decides, not chance."""
    forms = {
        "array": (X, STEPS, {}),
        "list": (list(X), list(STEPS), {}),
        "lengths": (X, STEPS, {"lengths": [4] * 5}),
        "mask": (X, STEPS, {"mask": np.ones((5, 4), bool)}),
        "list of Y": (X, list(STEPS), {}),
    }
    sequences, targets, how = forms[given]
    seen = []

    def loss(outputs, goal):
        seen.append((outputs, goal))
        return squares(outputs, np.asarray(goal) if isinstance(outputs, np.ndarray) else goal)

    network, twin = (LSTMNetwork(3, 4, 2, readout="steps", dtype="float64", seed=0) for _ in range(2))
    common = {"batch_size": 2, "epochs": 1, "shuffle": False, "tbptt": tbptt, "verbose": False}
    train(network, sequences, targets, loss=loss, optimizer=SGD(0.1), **how, **common)
    train(twin, X, STEPS, optimizer=SGD(0.1), **common)
    assert np.allclose(network.parameters, twin.parameters, rtol=0, atol=1e-14)
    chunks = [(0, 4)] if tbptt is None else [(0, 3), (3, 4)]
    parts = [(batch, *chunk) for batch in (slice(0, 2), slice(2, 4), slice(4, 5)) for chunk in chunks]
    for (outputs, goal), (batch, begin, end) in zip(seen, parts, strict=True):
        assert isinstance(outputs, list) == (given not in ("array", "list of Y"))
        assert isinstance(goal, list) == (given != "array")
        assert np.shape(outputs) == (batch.stop - batch.start, end - begin, 2)
        assert np.array_equal(goal, STEPS[batch, begin:end])


@pytest.mark.parametrize("how", [{}, {"lengths": [4, 1, 2, 3, 4]}])
@pytest.mark.parametrize("readout", ["last", "mean", "max"])
def test_outputs_are_one_array_where_each_sequence_has_one(readout, how):
    def loss(outputs, targets):
        assert isinstance(outputs, np.ndarray)
        assert outputs.shape == targets.shape == (5, 2)
        return squares(outputs, targets)

    network = LSTMNetwork(3, 4, 2, readout=readout, dtype="float64", seed=0)
    value, gradient = network.gradient(X, STEPS[:, 0], loss=loss, **how)
    expected, slope = network.gradient(X, STEPS[:, 0], **how)
    assert np.isclose(value, expected, rtol=1e-14)
    assert np.allclose(gradient, slope, rtol=0, atol=1e-15)


def broadcasting(outputs, targets):
    """Return the squared error; the gradient has the shape of the outputs whatever the targets broadcast to."""
    ys, ts = (outputs, targets) if isinstance(outputs, list) else ([outputs], [targets])
    size = sum(y.size for y in ys)
    errors = [y - t for y, t in zip(ys, ts, strict=True)]
    gradient = [2 * e.sum(axis=-1, keepdims=True) / size for e in errors]
    return sum((e**2).sum() for e in errors) / size, gradient if isinstance(outputs, list) else gradient[0]


ONE = np.random.default_rng(2).standard_normal((5, 4))
LAST_AXIS = {
    "array": (X, ONE[:, 0], {}),
    "float32": (X, ONE[:, 0].astype("f4"), {}),
    "memoryview": (X, memoryview(ONE[:, 0].copy()), {}),
    "buffer": (X, array("d", ONE[:, 0]), {}),
    "list": (X, ONE[:, 0].tolist(), {}),
    "some integers": (X, [0, 1, 2.5, 3, np.float32(4)], {}),
    "steps": (X, ONE, {}),
    "steps of a list": (X, ONE.tolist(), {}),
    "list of X": (list(X), ONE, {}),
    "different lengths": ([X[0], X[1, :2]], [ONE[0], [0, 1]], {}),
    "lengths": (X, ONE, {"lengths": [4, 2, 3, 1, 4]}),
    "mask": (X, ONE, {"mask": np.eye(5, 4, -1) == 0}),
}


@pytest.mark.parametrize("tbptt", [None, 3])
@pytest.mark.parametrize("given", LAST_AXIS)
def test_floats_of_a_single_output_get_the_last_axis(given, tbptt):
    """Without it they would broadcast to every pair of an output and a target."""
    sequences, Y, how = LAST_AXIS[given]
    readout = "last" if np.ndim(Y[0]) == 0 else "steps"
    how = how | {"tbptt": tbptt, "batch_size": 3, "optimizer": SGD(0.1), "epochs": 2, "seed": 0, "verbose": False}
    network, twin = (LSTMNetwork(3, 4, 1, readout=readout, dtype="float64", seed=0) for _ in range(2))
    train(network, sequences, Y, loss=broadcasting, **how)
    train(twin, sequences, Y, **how)
    assert np.allclose(network.parameters, twin.parameters, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "Y",
    [np.arange(5), list(range(5)), ONE, ["a", 1.0, 2.0, 3.0, 4.0], [1.0, [2.0], 3.0, 4.0, 5.0], [[1.0, [2.0]]] * 5],
    ids=["integers", "list of integers", "four each", "text", "some with the axis", "ragged"],
)
def test_other_targets_arrive_as_given(Y):
    seen = []

    def loss(outputs, targets):
        seen.append(targets)
        return 0.0, np.zeros_like(outputs)

    LSTMNetwork(3, 4, 1, seed=0).gradient(X, Y, loss=loss)
    assert type(seen[0]) is type(Y)
    assert np.array_equal(seen[0], Y) if isinstance(Y, np.ndarray) else seen[0] == Y


def test_a_gradient_of_another_shape_is_named_with_both_shapes():
    def loss(outputs, targets):
        return 0.0, outputs - targets.T

    with pytest.raises(ValueError, match=r"^the loss's gradient has shape \(5, 5\); expected \(5, 1\)"):
        LSTMNetwork(3, 4, 1, seed=0).gradient(X, ONE[:, 0], loss=loss)


@pytest.mark.parametrize("gradient", [np.full((5, 1), None), np.full((5, 1), "1"), np.ones((5, 1), complex)], ids=str)
def test_a_gradient_of_another_kind_is_named(gradient):
    with pytest.raises(TypeError, match=rf"^the loss's gradient has dtype {gradient.dtype}; expected real numbers"):
        LSTMNetwork(3, 4, 1, seed=0).gradient(X, ONE, loss=lambda outputs, targets: (0.0, gradient))


def test_a_gradient_beyond_float32_is_not_finite():
    with pytest.raises(NonFiniteError, match=r"^the loss's gradient is not finite"):
        LSTMNetwork(3, 4, 1, seed=0).gradient(X, ONE, loss=lambda outputs, targets: (0.0, np.full((5, 1), 1e300)))


def test_masked_targets_are_refused():
    """NumPy would drop the mask without a word."""
    with pytest.raises(ValueError, match=r"^Y has masked elements"):
        LSTMNetwork(3, 4, 1, seed=0).gradient(X, np.ma.masked_greater(ONE[:, :1], 0), loss=squares)


def test_a_subclass_runs_as_what_it_is():
    class Thrice(MSE):
        def __call__(self, outputs, targets):
            value, gradient = squares(outputs, targets)
            return 3 * value, 3 * gradient

    network, Y = LSTMNetwork(3, 4, 2, dtype="float64", seed=0), STEPS[:, 0]
    value, gradient = network.gradient(X, Y, loss=Thrice())
    expected, slope = network.gradient(X, Y)
    assert np.isclose(value, 3 * expected, rtol=1e-14)
    assert np.allclose(gradient, 3 * slope, rtol=0, atol=1e-14)

    class Nothing(CrossEntropy):
        pass

    with pytest.raises(ValueError, match=r"^loss is .*; expected one of 'mse', .*, or a callable"):
        network.gradient(X, Y, loss=Nothing())


@pytest.mark.parametrize("result", [("1.0", 0), ("ab"), (np.ones(1), 0), (1j, 0), (None, 0), {1: 2, 3: 4, 5: 6}])
def test_a_value_that_is_no_number_is_refused(result):
    with pytest.raises(TypeError, match=r"^loss returned .*; expected \(value, gradient\)"):
        LSTMNetwork(3, 4, 2, seed=0).gradient(X, STEPS[:, 0], loss=lambda outputs, targets: result)


def test_a_value_that_numpy_cannot_take_is_named():
    class Scalar:
        """A tensor with a gradient, as PyTorch's."""

        requires_grad = True

        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")

        def detach(self):
            return self

        numpy = detach

    message = (
        r"^the loss's value is a \w+\..*Scalar that NumPy cannot take; pass the loss's value\.detach\(\)\.numpy\(\)$"
    )
    with pytest.raises(TypeError, match=message):
        LSTMNetwork(3, 4, 2, seed=0).gradient(X, STEPS[:, 0], loss=lambda outputs, targets: (Scalar(), outputs))


@pytest.mark.parametrize("Y", ["lasts", b"lasts", {1, 2, 3, 4, 5}, memoryview(np.ones((6, 2)))])
def test_targets_of_another_kind_are_named(Y):
    with pytest.raises((TypeError, ValueError), match=r"^Y "):
        train(LSTMNetwork(3, 4, 2, seed=0), X, Y, loss=squares, verbose=False)


def test_targets_may_be_a_memoryview():
    network = LSTMNetwork(3, 4, 2, seed=0)
    assert network.gradient(X, memoryview(STEPS[:, 0].copy()), loss=squares)[0] > 0


def test_help_tells_the_contract():
    text = pydoc.render_doc(losses.Loss, renderer=pydoc.plaintext)
    for words in ("(value, gradient)", "(B, output_dim)", "list of B arrays", "tbptt", "check_gradient"):
        assert words in text


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"loss": MSE}, r"loss is <class '.*MSE'>; expected an object: MSE\(\)"),
        ({"loss": CrossEntropy}, r"expected an object: CrossEntropy\(\)"),
        ({"loss": MAE}, r"expected an object: MAE\(\)"),
        ({"optimizer": Adam}, r"optimizer is <class '.*Adam'>; expected an object: Adam\(\)"),
        ({"optimizer": SGD}, r"expected an object: SGD\(\)"),
        ({"loss": 10**5 * "x"}, "^loss is 'xxx.{,90}; expected one of"),
        ({"optimizer": 10**5 * "x"}, "^optimizer is 'xxx.{,90}; expected one of"),
    ],
)
def test_a_class_for_its_object_is_told(how, message):
    with pytest.raises(ValueError, match=message):
        train(LSTMNetwork(3, 4, 2, seed=0), X, STEPS[:, 0], verbose=False, **how)


# --- check_gradient ---


def entropy(outputs, targets):
    p = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    rows = np.arange(len(p))
    value = -np.log(p[rows, targets]).mean()
    p[rows, targets] -= 1
    outputs[...] = np.nan  # a loss owns its outputs
    return value, p / len(p)


def test_right_gradients_pass():
    rng = np.random.default_rng(0)
    outputs = 100 * rng.standard_normal((3, 5, 2))
    assert check_gradient(squares, outputs, np.zeros((3, 5, 2))) < 1e-7
    assert check_gradient(entropy, rng.standard_normal((4, 3)).astype("f4"), np.array([0, 2, 1, 2])) < 1e-7
    ragged = [rng.standard_normal((T, 2)) for T in (3, 1, 4)]
    assert check_gradient(squares, ragged, [np.ones_like(y) for y in ragged]) < 1e-7
    assert check_gradient(lambda y, t: (1.0, np.zeros_like(y)), outputs, None) == 0


@pytest.mark.parametrize("index", [(0, 0), (3, 1)])
def test_the_worst_element_is_named(index):
    outputs, targets = np.random.default_rng(0).standard_normal((2, 4, 2))
    right = squares(outputs, targets)[1]
    before = outputs.copy()

    def loss(outputs, targets):
        value, gradient = squares(outputs, targets)
        gradient[1, 0] *= 1.01
        gradient[index] = 2 * gradient[index] + 1
        return value, gradient

    place = rf"^the loss's gradient at outputs\[{index[0]}, {index[1]}\] is {2 * right[index] + 1:.6g}; "
    with pytest.raises(ValueError, match=rf"{place}expected {right[index]:.6g}, "):
        check_gradient(loss, outputs, targets)
    assert np.array_equal(outputs, before)
    error = (1 + right[index]) / (2 * right[index] + 1)  # the wrong element is the largest
    assert np.isclose(check_gradient(loss, outputs, targets, tolerance=2), error, rtol=1e-6)

    def listed(outputs, targets):
        return 0.0, [np.zeros((2, 2)), np.ones((3, 2))]

    with pytest.raises(ValueError, match=r"at outputs\[1\]\[0, 0\] is 1; expected 0"):
        check_gradient(listed, [np.zeros((2, 2)), np.zeros((3, 2))], None)


@pytest.mark.parametrize(
    ("loss", "outputs", "message"),
    [
        (MSE(), X, "loss is .*; expected a loss in Python"),
        ("mse", X, "loss is 'mse'; expected a loss in Python"),
        (lambda y, t: 1.0, X, "loss returned 1.0; expected"),
        (lambda y, t: (np.nan, y), X, "loss returned the value nan"),
        (lambda y, t: (1.0, y[0]), X, r"the loss's gradient has the shape \(4, 3\); expected \(5, 4, 3\)"),
        (lambda y, t: (1.0, y * np.inf), X, r"the loss's gradient\[0, 0, 0\] is"),
        (lambda y, t: (1.0, y[0]), list(X), "the loss's gradient is array"),
        (lambda y, t: (1.0, y[:2]), list(X), r"the loss's gradient has the shape"),
        (squares, "outputs", "outputs has dtype"),
        (squares, [np.ones(2), "outputs"], r"outputs\[1\] has dtype"),
    ],
)
def test_bad_arguments_of_check_gradient_are_named(loss, outputs, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        check_gradient(loss, outputs, X)
    for name, value in (("tolerance", -1), ("spacing", 0.0), ("spacing", 1e-20), ("spacing", "small")):
        with pytest.raises((TypeError, ValueError), match=f"^{name} is"):
            check_gradient(squares, X, X, **{name: value})
