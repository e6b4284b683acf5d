"""The checks of what the compiled loop reads, and the order of its passes."""

import numpy as np
import pytest

import lstm_ext
from lstm_ext import LSTMNetwork, _epoch, _kernels
from lstm_ext._heads import Head
from lstm_ext._stack import LayerStack
from lstm_ext.sequences import Sequences, longest_first
from lstm_ext.training.batches import Batches
from lstm_ext.training.driver import EVERY_PHASE, PassRunner

LENGTHS = [3, 7, 1, 5, 7, 2, 4]


def runner(dtype="float32", readout="last", loss="mse", batch_size=3, **how):
    network = LSTMNetwork(2, 3, 4, readout=readout, dtype=dtype, seed=0)
    rng = np.random.default_rng(0)
    X = [rng.standard_normal((n, 2)) for n in LENGTHS]
    Y = [rng.standard_normal((n, 4)) for n in LENGTHS] if readout == "steps" else rng.standard_normal((7, 4))
    return PassRunner(network._setup(loss, batch_size, None), X, Y, **how)


def loop_arguments(made):
    """Return the arguments that a runner made its loop from."""
    rows = {"rows": made.sequences.rows, "first": made.sequences.first, "lengths": made.sequences.lengths}
    targets = {"loss": lstm_ext.MSE(), "targets": made.targets.rows, "target_first": made.targets.first}
    flags = {"unchecked_X": False, "unchecked_Y": False, "optimizer": None, "clip_norm": np.inf, "threads": 1}
    arrays = {"parameters": made.setup.parameters, "gradient": made.gradient, "backup": made.backup}
    return rows | targets | flags | arrays | {"dropout_seed": None}


WRONG = {
    "parameters": [lambda a: a[:-1], lambda a: a.astype("f8"), lambda a: a[None]],
    "gradient": [lambda a: a[1:], lambda a: a.astype("f8")],
    "rows": [lambda a: a[:-1], lambda a: a[:, :1].copy(), lambda a: a.astype("f8"), lambda a: np.asfortranarray(a)],
    "first": [lambda a: a[1:], lambda a: a.astype("i4"), lambda a: a + 1, lambda a: a - 1],
    "lengths": [lambda a: a + 1, lambda a: a - 1, lambda a: a.astype("i4")],
    "targets": [lambda a: a[:-1], lambda a: a[:, :3].copy(), lambda a: a.astype("f8")],
    "target_first": [lambda a: a[1:], lambda a: a + 1, lambda a: a.astype("u8")],
}


@pytest.mark.parametrize("readout", ["last", "steps"])
@pytest.mark.parametrize("name", WRONG)
def test_a_loop_refuses_arrays_that_its_passes_would_leave(name, readout):
    made = runner(readout=readout)
    given = loop_arguments(made)
    _epoch.TrainingLoop(made.stack, made.head, **given)
    for change in WRONG[name]:
        with pytest.raises(ValueError, match=r"expected|would have"):
            _epoch.TrainingLoop(made.stack, made.head, **given | {name: change(given[name])})


def test_a_loop_takes_the_targets_of_its_loss():
    made = runner()
    given = loop_arguments(made)
    labels = {"loss": lstm_ext.CrossEntropy(), "targets": np.zeros(7, np.intp)}
    _epoch.TrainingLoop(made.stack, made.head, **given | labels)
    for wrong in (given["targets"], labels["targets"].astype("i4"), labels["targets"][:6], labels["targets"][:, None]):
        with pytest.raises(ValueError, match=r"^targets (is .*expected|has 6 rows)"):
            _epoch.TrainingLoop(made.stack, made.head, **given | labels | {"targets": wrong})


def test_a_loop_takes_one_head_and_one_stack():
    single, double, steps = runner(), runner("float64"), runner(readout="steps")
    for stack, head in ((single.stack, double.head), (single.stack, steps.head), (double.stack, single.head)):
        with pytest.raises(ValueError, match="expected those of one network"):
            _epoch.TrainingLoop(stack, head, **loop_arguments(single))


@pytest.mark.parametrize("change", ["units", "passes", "parameters", "outputs", "masks"])
def test_a_loop_refuses_a_stack_and_a_head_of_different_passes(change):
    """Also where the shapes of the arrays could not tell."""
    readout = "mean" if change == "outputs" else "last"
    made = runner(readout=readout)
    architecture = LSTMNetwork(2, 3, 4, readout=readout).architecture
    other = LSTMNetwork(2, 2, 4).architecture if change == "units" else architecture
    isa, rest = _kernels.current(), (np.dtype("float32"), 7, 3)
    count = len(made.loop.parameters) + (change == "parameters")
    head = Head(isa, other, *rest, count, keep=change != "passes")
    stack = LayerStack(isa, architecture, *rest, keep=True)
    seed = {"dropout_seed": 0} if change == "masks" else {}
    with pytest.raises(ValueError, match="expected those of one network"):
        _epoch.TrainingLoop(stack, head, **loop_arguments(made) | seed)


def test_a_loop_without_a_loss_has_no_targets_to_check():
    made = runner()
    given = loop_arguments(made) | {"loss": None, "unchecked_X": True, "unchecked_Y": True}
    loop = _epoch.TrainingLoop(made.stack, made.head, **given)
    assert (loop.unchecked_X, loop.unchecked_Y) == (True, False)
    batches = made.batches
    loop.set_order(batches.members, batches.unsorted_positions, batches.starts, batches.first_steps)
    assert loop.run(0, 3, _epoch.FORWARD, np.inf) == (3, _epoch.DONE)


ORDERS = {
    "members": [lambda a: a[:-1], lambda a: a[::-1].copy(), lambda a: a + 1, lambda a: a - 1, lambda a: a.astype("i4")],
    "unsorted_positions": [lambda a: a[1:], lambda a: a.astype("i4")],
    "starts": [lambda a: a + 3, lambda a: a - 1, lambda a: a[1:]],
    "first_steps": [lambda a: a + 2, lambda a: a - 1, lambda a: a[1:]],
}


@pytest.mark.parametrize("name", ORDERS)
def test_a_loop_refuses_an_order_that_leads_out_of_its_data(name):
    made = runner(tbptt=2)
    batches = made.batches
    given = {key: getattr(batches, key) for key in ORDERS}
    for change in ORDERS[name]:
        with pytest.raises(ValueError, match=r"expected|not those"):
            made.loop.set_order(**given | {name: change(given[name])})
        with pytest.raises(ValueError, match="are not among the 0 of the epoch"):
            made.loop.run(0, 1, _epoch.FORWARD, np.inf)
    made.loop.set_order(**given)
    made.gradients(0)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_loop_refuses_members_that_are_not_sequences_or_not_sorted(batch_size):
    """Where no chunk's first step could tell."""
    made = runner(batch_size=batch_size)
    batches, (given, *others) = made.batches, (getattr(made.batches, key) for key in ORDERS)
    assert (np.diff(made.sequences.lengths[given[:3]]) < 0).any()
    for wrong in (given + 7, given - 7, *([given[::-1].copy()] if batch_size > 1 else [])):
        with pytest.raises(ValueError, match="are not those"):
            made.loop.set_order(wrong, *others)
    made.loop.set_order(batches.members, *others)


def test_a_loop_runs_the_passes_and_phases_that_it_has():
    made = runner()
    for first, last in ((-1, 1), (1, 0), (0, 4)):
        with pytest.raises(ValueError, match="are not among the 3 of the epoch"):
            made.loop.run(first, last, _epoch.FORWARD, np.inf)
    with pytest.raises(ValueError, match="phases is 15"):
        made.loop.run(0, 1, EVERY_PHASE, np.inf)  # no optimizer
    with pytest.raises(ValueError, match="phases is 7"):
        runner(forward_only=True).loop.run(0, 1, _epoch.FORWARD | _epoch.LOSS | _epoch.BACKWARD, np.inf)
    made.loop.run(0, 3, _epoch.FORWARD | _epoch.LOSS | _epoch.BACKWARD, np.inf)
    assert np.isfinite(made.loop.losses).all()


def test_the_longest_sequences_come_first():
    lengths = np.array(LENGTHS)
    assert longest_first(lengths).tolist() == [1, 4, 3, 6, 0, 5, 2]
    assert longest_first(lengths, 3).tolist() == [1, 0, 2, 4, 3, 5, 6]


@pytest.mark.parametrize("chunk_steps", [None, 1, 3, 7])
@pytest.mark.parametrize("every_step", [False, True])
def test_every_output_is_in_one_pass(every_step, chunk_steps):
    """And its sequences are those of its batch, in the order drawn."""
    sequences = Sequences([np.ones((n, 1)) for n in LENGTHS], 1, np.dtype("f4"))
    batches = Batches(sequences, 3, chunk_steps=chunk_steps, every_step=every_step)
    order = np.random.default_rng(0).permutation(7)
    batches.set_order(order)
    assert batches.count == 3
    outputs = dict.fromkeys(range(7), 0)
    for index in range(batches.passes):
        drawn = order[3 * batches.batch_of(index) :][:3]
        ended = sequences.lengths[drawn] - batches.first_steps[index]
        if not every_step and not ((ended > 0) & (ended <= (chunk_steps or 7))).any():
            continue
        found = batches.outputs_of(index)
        assert [n for n in drawn if n in found.members] == found.members.tolist()
        assert sorted(found.rows.tolist()) == list(range(len(found.rows)))
        for n, length in zip(found.members.tolist(), found.lengths if every_step else [1] * 7, strict=False):
            outputs[n] += length
    assert list(outputs.values()) == (LENGTHS if every_step else [1] * 7)
