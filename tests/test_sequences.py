"""Sequences given in any way become rows, and rows go back; padding is not looked at."""

import numpy as np
import pytest

from lstm_ext.sequences import Sequences

F64 = np.dtype(np.float64)
LENGTHS = [3, 1, 5, 2]
MASK = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0]], np.bool_)


def padded(fill=np.nan, live=None, T=5):
    """Return X (4, T, 2) with its own number everywhere, and `fill` where it is not live."""
    X = np.arange(4.0 * T * 2).reshape(4, T, 2)
    live = np.arange(T) < np.array(LENGTHS)[:, None] if live is None else live
    X[~live] = fill
    return X


def parts(X, live):
    return [x[steps] for x, steps in zip(X, live, strict=True)]


def assert_rows(sequences, expected):
    """Compare with a list of arrays."""
    assert len(sequences) == len(expected)
    lengths = [len(part) for part in expected]
    assert sequences.lengths.tolist() == lengths
    assert sequences.longest == max(lengths)
    assert sequences.same_length == (min(lengths) == max(lengths))
    assert sequences.first.dtype == sequences.lengths.dtype == np.intp
    assert sequences.rows.flags.c_contiguous
    for first, part in zip(sequences.first, expected, strict=True):
        assert np.array_equal(sequences.rows[first : first + len(part)], part)
    assert sequences.has_padding == (len(sequences.rows) > sum(lengths))


# --- every way of giving them ---


@pytest.mark.parametrize("fill", [np.nan, np.inf, 1e300, 7.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lengths(dtype, fill):
    X = padded(fill, T=6)
    expected = [x[:length].astype(dtype) for x, length in zip(X, LENGTHS, strict=True)]
    sequences = Sequences(X, 2, np.dtype(dtype), lengths=LENGTHS)
    assert_rows(sequences, expected)
    assert sequences.rows.dtype == dtype
    assert (sequences.steps, sequences.mask, sequences.is_list) == (6, None, False)
    assert_rows(Sequences(expected, 2, np.dtype(dtype)), expected)


@pytest.mark.parametrize("integer", ["i1", "u8", ">i4", "O"])
def test_lengths_are_integers_of_any_kind(integer):
    lengths = list(map(int, LENGTHS)) if integer == "O" else np.array(LENGTHS, integer)
    assert Sequences(padded(), 2, F64, lengths=lengths).lengths.tolist() == LENGTHS


@pytest.mark.parametrize("fill", [np.nan, -np.inf, 7.0])
def test_a_mask(fill):
    X = padded(fill, MASK)
    mask = MASK.copy()
    sequences = Sequences(X, 2, F64, mask=mask)
    assert_rows(sequences, parts(X, MASK))
    mask[...] = False  # it is the caller's
    assert np.array_equal(sequences.mask, MASK)
    assert (sequences.steps, sequences.longest) == (5, 5)
    assert_rows(Sequences(X, 2, F64, mask=MASK.tolist()), parts(X, MASK))


def test_a_list():
    X = parts(padded(0), MASK)
    sequences = Sequences(X, 2, F64)
    assert_rows(sequences, X)
    assert (sequences.steps, sequences.mask, sequences.is_list) == (5, None, True)
    assert_rows(Sequences(tuple(X), 2, F64), X)


@pytest.mark.parametrize("given", [{}, {"lengths": [5] * 4}, {"mask": np.ones((4, 5), np.bool_)}], ids=str)
def test_nothing_is_copied_where_all_is_live(given):
    X = np.ones((4, 5, 2))
    sequences = Sequences(X, 2, F64, **given)
    assert_rows(sequences, list(X))
    assert np.shares_memory(sequences.rows, X)
    assert sequences.mask is None
    assert sequences.live_mask.all()
    Y = np.arange(60.0).reshape(20, 3)
    assert np.shares_memory(sequences.scatter(Y), Y)
    assert sequences.scatter(Y).shape == (4, 5, 3)


@pytest.mark.parametrize("lengths", [LENGTHS, [2] * 4], ids=str)
def test_nothing_is_copied_with_lengths(lengths):
    X = padded(np.nan, np.arange(5) < np.array(lengths)[:, None])
    sequences = Sequences(X, 2, F64, lengths=lengths)
    assert np.shares_memory(sequences.rows, X)
    assert sequences.first.tolist() == [0, 5, 10, 15]
    rows = sequences.new_rows(3)
    assert rows.shape == (20, 3)
    assert not rows[~sequences.live_mask.reshape(-1)].any()
    assert np.shares_memory(sequences.scatter(rows), rows)
    converted = Sequences(X, 2, np.dtype(np.float32), lengths=lengths)
    assert_rows(converted, [x[:length] for x, length in zip(X, lengths, strict=True)])
    assert len(converted.rows) == sum(lengths)  # only what is live is copied


def test_short_sequences_of_one_length():
    X = padded(np.nan, np.arange(5) < np.full(4, 2)[:, None])
    sequences = Sequences(X, 2, F64, lengths=[2] * 4)
    assert_rows(sequences, list(X[:, :2]))
    assert sequences.scatter(sequences.rows).shape == (4, 5, 2)


# --- back ---


@pytest.mark.parametrize("given", [{"lengths": LENGTHS}, {"mask": MASK}], ids=["lengths", "mask"])
def test_rows_go_back_to_their_places(given):
    sequences = Sequences(padded(0, given.get("mask")).astype(np.float32), 2, F64, **given)
    Y = np.arange(3.0 * len(sequences.rows), dtype=np.float32).reshape(-1, 3) + 1
    scattered = sequences.scatter(Y)
    assert scattered.shape == (4, 5, 3)
    assert scattered.dtype == np.float32
    live = sequences.live_mask
    assert live.sum(axis=1).tolist() == sequences.lengths.tolist()
    assert np.array_equal(scattered[live], Y)
    assert (scattered[~live] == 0).all()
    if "mask" in given:
        assert np.array_equal(live, MASK)
    X = padded(0, live)
    assert np.array_equal(sequences.scatter(Sequences(X, 2, F64, **given).rows), X)


def test_rows_of_a_list_go_back_as_a_list():
    sequences = Sequences([np.ones((length, 2)) for length in LENGTHS], 2, F64)
    Y = np.arange(33.0).reshape(11, 3) + 1
    back = sequences.scatter(Y)
    assert [y.shape for y in back] == [(length, 3) for length in LENGTHS]
    assert np.array_equal(np.concatenate(back), Y)
    whole = sequences.pad(Y)
    assert whole.shape == (4, 5, 3)
    assert all(np.array_equal(w[: len(y)], y) and (w[len(y) :] == 0).all() for w, y in zip(whole, back, strict=True))
    equal = Sequences([np.ones((3, 2))] * 4, 2, F64)
    assert equal.scatter(np.ones((12, 3))).shape == (4, 3, 3)


# --- bad input ---

X = np.ones((4, 5, 2))
HOLED = MASK.copy()
HOLED[1] = False
BAD = {
    "zero": ({"lengths": [3, 0, 5, 2]}, ValueError, r"lengths\[1\] is 0; expected from 1 to 5, the steps of X"),
    "negative": ({"lengths": [3, 1, 5, -2]}, ValueError, r"lengths\[3\] is -2; expected from 1 to 5"),
    "past the end": ({"lengths": [6, 1, 5, 2]}, ValueError, r"lengths\[0\] is 6; expected from 1 to 5"),
    "huge": ({"lengths": np.array([1, 2, 3, 2**64 - 1], "u8")}, ValueError, r"lengths\[3\] is 18446744073709551615"),
    "fractions": ({"lengths": [3.0, 1, 5, 2]}, TypeError, "lengths has dtype float64; expected integers"),
    "flags": ({"lengths": [True] * 4}, TypeError, "lengths has dtype bool; expected integers"),
    "past 64 bits": ({"lengths": [10**30] * 4}, TypeError, "lengths has dtype object; expected integers"),
    "names": ({"lengths": ["a"] * 4}, TypeError, "lengths has dtype <U1; expected integers"),
    "too few": ({"lengths": [3, 1, 5]}, ValueError, r"lengths has shape \(3,\); expected \(4,\)"),
    "none": ({"lengths": []}, ValueError, r"lengths has shape \(0,\); expected \(4,\)"),
    "one number": ({"lengths": 3}, ValueError, r"lengths has shape \(\); expected \(4,\)"),
    "columns": ({"lengths": np.ones((4, 1), int)}, ValueError, r"lengths has shape \(4, 1\); expected \(4,\)"),
    "both": ({"lengths": LENGTHS, "mask": MASK}, ValueError, "lengths and mask are both given; expected one of them"),
    "all masked": ({"mask": HOLED}, ValueError, r"mask\[1\] is False everywhere; expected at least one live step"),
    "integer mask": ({"mask": MASK.astype(int)}, TypeError, r"mask has dtype int\d+; expected bool"),
    "other mask": ({"mask": MASK.T}, ValueError, r"mask has shape \(5, 4\); expected \(4, 5\)"),
    "three axes": ({"mask": MASK[:, :, None]}, ValueError, r"mask has shape \(4, 5, 1\); expected \(4, 5\)"),
    "masked lengths": ({"lengths": np.ma.array(LENGTHS, mask=[1, 0, 0, 0])}, ValueError, "lengths has masked elements"),
    "X, flat": ({"X": X[0], "lengths": LENGTHS}, ValueError, r"X has shape \(5, 2\); expected \(N, T, 2\)"),
    "X, width": ({"X": X[:, :, :1], "mask": MASK}, ValueError, r"X has shape \(4, 5, 1\); expected \(N, T, 2\)"),
    "X, no steps": ({"X": X[:, :0], "lengths": [0] * 4}, ValueError, r"X has shape \(4, 0, 2\); expected no axis"),
    "X, complex": ({"X": X * 1j, "lengths": LENGTHS}, TypeError, "X has dtype complex128; expected real numbers"),
    "X, a list with lengths": ({"X": list(X), "lengths": LENGTHS}, ValueError, "lengths is given with a list"),
    "X, a list with a mask": ({"X": list(X), "mask": MASK}, ValueError, "mask is given with a list"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    given, error, message = BAD[name]
    with pytest.raises(error, match=f"^{message}"):
        Sequences(**({"X": X, "input_dim": 2, "dtype": F64} | given))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_live_steps_are_checked(value):
    wrong = padded(value)
    wrong[2, 3, 1] = value
    with pytest.raises(ValueError, match=r"^X\[2, 3, 1\] is "):
        Sequences(wrong, 2, np.dtype(np.float32), lengths=LENGTHS)
    wrong = padded(value, MASK)
    wrong[3, 2, 0] = value
    with pytest.raises(ValueError, match=r"^X\[3, 2, 0\] is "):
        Sequences(wrong, 2, np.dtype(np.float32), mask=MASK)


def test_large_integers_in_padding_do_not_matter():
    whole = padded(0).astype(int)
    whole[1, 1:] = 2**60
    assert Sequences(whole, 2, F64, lengths=LENGTHS).rows.max() < 100
    whole[1, 0] = 2**60
    with pytest.raises(ValueError, match="X holds the integer 1152921504606846976"):
        Sequences(whole, 2, F64, lengths=LENGTHS)


@pytest.mark.parametrize("given", [{"lengths": LENGTHS}, {"mask": MASK}], ids=["lengths", "mask"])
def test_arguments_are_never_modified(given):
    whole, copies = padded(), {name: np.array(value) for name, value in given.items()}
    whole[np.isnan(whole)] = 3
    before = whole.copy()
    sequences = Sequences(whole, 2, F64, **copies)
    sequences.scatter(sequences.rows)
    assert np.array_equal(whole, before)
    assert all(np.array_equal(copies[name], value) for name, value in given.items())
