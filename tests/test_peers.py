"""LSTMs of other packages, where they are installed: PyTorch's layer and the ONNX operator's own test cases."""

from importlib import import_module
from itertools import product

import numpy as np
import pytest
from helpers import assert_close, import_torch

import lstm_ext
from lstm_ext import reference

pytestmark = pytest.mark.peers
MODULES = {"compiled": lstm_ext, "reference": reference}
I, H, O = 3, 5, 2
LENGTHS = [2, 6, 1, 4]  # in no order; N of them, T = 6


@pytest.fixture(params=list(MODULES))
def module(request):
    """Return a module with the classes under test."""
    return MODULES[request.param]


# --- PyTorch ---


def torch_cells(layer):
    """Yield the suffixes of a torch.nn.LSTM's cells, theirs and ours."""
    for number, direction in product(range(layer.num_layers), ("", "_reverse")[: 1 + layer.bidirectional]):
        yield f"_l{number}{direction}", (f"_l{number}" if number else "") + direction


def from_torch(layer, value):
    """Return by our names what `value` (of a parameter: itself, its gradient) says of PyTorch's parameters.

    PyTorch stacks the gates i, f, C, o and has two biases, whose sum is ours and whose gradients are equal.
    """
    named = {name: value(parameter) for name, parameter in layer.named_parameters()}
    ours = {}
    for theirs, suffix in torch_cells(layer):
        W = np.hstack((named[f"weight_hh{theirs}"], named[f"weight_ih{theirs}"]))
        for gate, rows in zip("ifCo", np.split(W, 4), strict=True):
            ours[f"W_{gate}{suffix}"] = rows
        if layer.bias:
            biases = np.stack((named[f"bias_ih{theirs}"], named[f"bias_hh{theirs}"]))
            for gate, rows in zip("ifCo", np.split(biases, 4, axis=1), strict=True):
                ours[f"b_{gate}{suffix}"] = rows
        if layer.proj_size:
            ours[f"W_r{suffix}"] = named[f"weight_hr{theirs}"]
    return ours


def torch_options(layer):
    """Return the options of our layer that make a torch.nn.LSTM."""
    return {
        "num_layers": layer.num_layers,
        "bidirectional": "concat" if layer.bidirectional else None,
        "proj_size": layer.proj_size or None,
        "use_bias": layer.bias,
    }


def torch_weights(layer):
    """Return the weights of a torch.nn.LSTM by our names."""
    weights = from_torch(layer, lambda parameter: parameter.detach().numpy().copy())
    return {name: w.sum(axis=0)[:, np.newaxis] if name.startswith("b_") else w for name, w in weights.items()}


def our_layer(module, layer):
    """Return a layer with the weights of a torch.nn.LSTM."""
    ours = module.LSTM(layer.input_size, layer.hidden_size, dtype="float64", **torch_options(layer))
    named = ours.named_parameters()
    weights = torch_weights(layer)
    assert weights.keys() == named.keys()
    for name, weight in weights.items():
        named[name][...] = weight
    return ours


@pytest.mark.parametrize("states", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_torch_layer(module, num_layers, bidirectional, proj_size, ragged, states):
    torch = import_torch()
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    torch.manual_seed(7)
    bias = not (ragged and states)  # without, now and then
    theirs = torch.nn.LSTM(I, H, num_layers, bias, True, 0.0, bidirectional, proj_size, dtype=torch.float64)
    ours = our_layer(module, theirs)
    N, T, D, R = len(LENGTHS), max(LENGTHS), 1 + bidirectional, proj_size or H
    rng = np.random.default_rng(8)

    def tensor(*shape):
        return torch.tensor(rng.standard_normal(shape), requires_grad=True)

    X = tensor(N, T, I)
    given = [tensor(num_layers * D, N, R), tensor(num_layers * D, N, H)] if states else []
    packed = pack_padded_sequence(X, LENGTHS, batch_first=True, enforce_sorted=False) if ragged else X
    outputs, last = theirs(packed, tuple(given) or None)
    outputs = pad_packed_sequence(outputs, batch_first=True)[0] if ragged else outputs
    expected = [outputs, *last]
    weights = [rng.standard_normal(array.shape) for array in expected]
    sum((torch.tensor(weight) * array).sum() for weight, array in zip(weights, expected, strict=True)).backward()

    def our_shape(array):
        return array[0] if num_layers * D == 1 else array

    h0, C0 = [our_shape(state.detach().numpy()) for state in given] or (None, None)
    how = {"lengths": LENGTHS} if ragged else {}
    actual, (h_T, C_T), tape = ours.forward(X.detach().numpy(), h0, C0, return_tape=True, **how)
    assert_close(actual, outputs.detach().numpy(), "outputs")
    assert_close(h_T, our_shape(last[0].detach().numpy()), "h_T")
    assert_close(C_T, our_shape(last[1].detach().numpy()), "C_T")

    gradients = ours.backward(tape, weights[0], our_shape(weights[1]), our_shape(weights[2]))
    assert_close(gradients.dX, X.grad.numpy(), "dX")
    for state, gradient in zip(given, (gradients.dh0, gradients.dC0), strict=False):
        assert_close(gradient, our_shape(state.grad.numpy()), "initial state")
    layout = module.parameter_layout(I, H, **torch_options(theirs))
    expected = from_torch(theirs, lambda parameter: parameter.grad.numpy())
    for name, (offset, (rows, columns)) in layout.items():
        gradient = gradients.parameters[offset : offset + rows * columns].reshape(rows, columns)
        for part in expected[name] if name.startswith("b_") else [expected[name]]:
            assert_close(gradient, part.reshape(rows, columns), name)


OPTIMIZERS = {  # ours and PyTorch's
    "sgd": (lambda: lstm_ext.SGD(0.05, momentum=0.9), ("SGD", {"lr": 0.05, "momentum": 0.9})),
    "adam": (lambda: lstm_ext.Adam(0.01), ("Adam", {"lr": 0.01})),
}


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_training_follows_torch(num_layers, bidirectional, proj_size, ragged, optimizer):
    torch = import_torch()
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    readout = "steps" if ragged != bidirectional else "last"
    torch.manual_seed(9)
    layer = torch.nn.LSTM(I, H, num_layers, True, True, 0.0, bidirectional, proj_size, dtype=torch.float64)
    head = torch.nn.Linear((1 + bidirectional) * (proj_size or H), O, dtype=torch.float64)
    for name, parameter in layer.named_parameters():
        if name.startswith("bias_hh"):  # two biases would take twice the steps of one
            parameter.requires_grad_(False).zero_()
    ours = lstm_ext.LSTMNetwork(I, H, O, readout=readout, dtype="float64", **torch_options(layer))

    def weights():
        own = {"W_y": head.weight.detach().numpy().copy(), "b_y": head.bias.detach().numpy()[:, np.newaxis].copy()}
        return torch_weights(layer) | own

    for name, weight in weights().items():
        ours.named_parameters()[name][...] = weight

    rng = np.random.default_rng(10)
    lengths = np.array([4, 6, 1, 3, 5, 2, 6]) if ragged else np.full(7, 6)  # batches of 4 and 3
    N, T = len(lengths), 6
    X, Y = rng.standard_normal((N, T, I)), rng.standard_normal((N, T, O))
    live = torch.tensor(np.arange(T) < lengths[:, np.newaxis])
    name, settings = OPTIMIZERS[optimizer][1]
    trained = [parameter for parameter in (*layer.parameters(), *head.parameters()) if parameter.requires_grad]
    theirs = getattr(torch.optim, name)(trained, **settings)
    losses = []
    for _ in range(10):  # twenty updates
        for rows in (slice(0, 4), slice(4, 7)):
            x, y, at = torch.tensor(X[rows]), torch.tensor(Y[rows]), live[rows]
            packed = pack_padded_sequence(x, lengths[rows], batch_first=True, enforce_sorted=False)
            outputs, (h_T, _) = layer(packed)
            if readout == "steps":
                outputs = head(pad_packed_sequence(outputs, batch_first=True, total_length=T)[0])
                loss = ((outputs - y)[at] ** 2).mean()
            else:
                last = torch.cat(list(h_T[-1 - bidirectional :]), dim=1)
                loss = ((head(last) - y[:, 0]) ** 2).mean()
            theirs.zero_grad()
            loss.backward()
            theirs.step()
            losses.append(float(loss.detach()))

    history = lstm_ext.train(
        ours,
        X,
        Y if readout == "steps" else Y[:, 0],
        optimizer=OPTIMIZERS[optimizer][0](),
        batch_size=4,
        epochs=10,
        lengths=lengths if ragged else None,
        shuffle=False,
    )
    size = lengths if readout == "steps" else np.ones(N)
    expected = np.reshape(losses, (10, 2)) @ [size[:4].sum(), size[4:].sum()] / size.sum()
    assert_close(np.array(history.loss), expected, "losses", 1e-12)
    for name, weight in weights().items():
        assert_close(ours.named_parameters()[name], weight, name, 1e-12)
    assert expected[-1] < expected[0]


# --- ONNX ---


@pytest.fixture(scope="session")
def onnx_cases():
    """Return the operator's own cases: (attributes, inputs by name, outputs by name, tolerances) by name."""
    pytest.importorskip("onnx")
    from onnx import helper
    from onnx.backend.test.case import node as node_cases

    with pytest.MonkeyPatch.context() as patch:  # without the other operators' cases, some 200 modules of them
        patch.setattr(node_cases, "import_recursive", lambda package: import_module(f"{package.__name__}.lstm"))
        cases = node_cases.collect_testcases("LSTM")
    found = {}
    for case in cases:
        (node,) = case.model.graph.node
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        ((inputs, outputs),) = case.data_sets
        found[case.name] = (
            attributes,
            dict(zip([name for name in node.input if name], inputs, strict=True)),
            dict(zip([name for name in node.output if name], outputs, strict=True)),
            {"rtol": case.rtol, "atol": case.atol},
        )
    return found


def our_onnx(module, attributes, inputs):
    """Return a layer with the weights of an ONNX node: gates i, o, f, C; peepholes i, o, f."""
    direction = attributes.get("direction", b"forward").decode()
    hidden_dim, input_dim = attributes["hidden_size"], inputs["W"].shape[2]
    layer = module.LSTM(
        input_dim,
        hidden_dim,
        dtype="float64",
        bidirectional="concat" if direction == "bidirectional" else None,
        go_backwards=direction == "reverse",
        peephole="P" in inputs,
        coupled_gates=bool(attributes.get("input_forget", 0)),
    )
    named = layer.named_parameters()
    for d in range(len(inputs["W"])):
        suffix = "_reverse" if d else ""
        W = np.hstack((inputs["R"][d], inputs["W"][d]))
        b = np.split(inputs["B"][d], 2) if "B" in inputs else [np.zeros(len(W))]
        for gate, rows, bias in zip("iofC", np.split(W, 4), np.split(sum(b), 4), strict=True):
            named[f"W_{gate}{suffix}"][...] = rows
            named[f"b_{gate}{suffix}"][...] = bias[:, np.newaxis]
        if "P" in inputs:
            for gate, p in zip("iof", np.split(inputs["P"][d], 3), strict=True):
                named[f"p_{gate}{suffix}"][...] = p[:, np.newaxis]
    return layer


ONNX = ["defaults", "with_initial_bias", "with_peepholes", "batchwise", "reverse", "bidirectional"]


@pytest.mark.parametrize("name", ONNX)
def test_onnx_operator(module, onnx_cases, name):
    if f"test_lstm_{name}" not in onnx_cases and name in ("reverse", "bidirectional"):
        pytest.skip("this onnx does not have the case")
    attributes, inputs, outputs, tolerances = onnx_cases[f"test_lstm_{name}"]
    layer = our_onnx(module, attributes, inputs)
    D, by_batch = len(inputs["W"]), attributes.get("layout", 0) == 1
    X = inputs["X"] if by_batch else inputs["X"].swapaxes(0, 1)
    N, T, _ = X.shape
    states = [inputs.get(state) for state in ("initial_h", "initial_c")]
    states = [None if state is None else state.swapaxes(0, 1) if by_batch else state for state in states]
    states = [state[0] if state is not None and D == 1 else state for state in states]
    lengths = inputs.get("sequence_lens", np.full(N, T))
    Y, (Y_h, Y_c) = layer.forward(X, *states, lengths=lengths)
    Y = Y.reshape(N, T, D, -1)
    results = {"Y": Y if by_batch else Y.transpose(1, 2, 0, 3)}
    for key, state in (("Y_h", Y_h), ("Y_c", Y_c)):
        state = state.reshape(D, N, -1)
        results[key] = state.swapaxes(0, 1) if by_batch else state
    assert outputs
    for key, expected in outputs.items():
        np.testing.assert_allclose(results[key], expected, **tolerances)
