"""The training loop: gather a batch, forward, loss, backward, clip, update; many batches in one call, without the GIL.

`run` takes a plan (plan.py) and a range of passes: batches, or with truncated backpropagation chunks of their steps.
Its phases can be asked for one by one, so that a loss or an optimizer written in Python goes between them; the loop is
the same.
"""
from libc.math cimport isfinite
from libc.stdint cimport uint64_t

from lstm_ext._heads cimport READOUT_STEPS, Head, HeadData, head_backward, head_forward
from lstm_ext._kernels cimport are_finite, kernels, philox_key, real
from lstm_ext._losses cimport Loss, batch_loss, make_loss
from lstm_ext._passes cimport Rows
from lstm_ext._stack cimport (
    Batch, StackData, LayerStack, States, layers_backward, layers_forward, pack_layers, stack_work,
)
from lstm_ext._threads cimport Region, Timer, begin_region, elapsed, end_region, recruit, start_timer
from lstm_ext._updates cimport Optimizer, make_optimizer, norm, update

cdef enum:
    _FORWARD = 1
    _LOSS = 2
    _BACKWARD = 4
    _UPDATE = 8

cdef enum:  # how a run ended
    _DONE = 0
    _NOT_FINITE = 1
    _UPDATE_NOT_FINITE = 2

FORWARD, LOSS, BACKWARD, UPDATE = _FORWARD, _LOSS, _BACKWARD, _UPDATE
DONE, NOT_FINITE, UPDATE_NOT_FINITE = _DONE, _NOT_FINITE, _UPDATE_NOT_FINITE


cdef struct Chunk:
    # What one pass runs: steps of some sequences, the longest first.
    Batch batch
    Py_ssize_t *first  # (size): the row that each begins at
    Py_ssize_t *lengths  # (size) and (steps): what batch.lengths and batch.batch_sizes are where they are not NULL
    Py_ssize_t *batch_sizes
    Py_ssize_t rows, ended  # in all; the first sequence that ends within the chunk


cdef struct Data:
    # Where the sequences are in the rows of X, and in those of the targets or labels.
    const Py_ssize_t *first
    const Py_ssize_t *lengths
    const Py_ssize_t *target_first


cdef void take_chunk(
    Chunk *chunk, const Data *data, const Py_ssize_t *members, Py_ssize_t count, Py_ssize_t first_step, Py_ssize_t most,
) noexcept nogil:
    """The steps from `first_step` on, at most so many, of the members of a batch that have them.

    members  sequences, the longest first
    """
    cdef Batch *batch = &chunk.batch
    cdef Py_ssize_t b = 0, t, n, length
    chunk.rows = chunk.ended = 0
    while b < count:
        n = members[b]
        length = data.lengths[n] - first_step
        if length <= 0:
            break
        if length > most:
            length = most
            chunk.ended = b + 1
        chunk.first[b], chunk.lengths[b] = data.first[n] + first_step, length
        chunk.rows += length
        b += 1
    batch.size, batch.steps, batch.lengths, batch.batch_sizes = b, chunk.lengths[0], NULL, NULL
    if chunk.lengths[b - 1] == batch.steps:
        return
    batch.lengths, batch.batch_sizes = chunk.lengths, chunk.batch_sizes
    for t in range(batch.steps):
        while chunk.lengths[b - 1] <= t:
            b -= 1
        chunk.batch_sizes[t] = b


cdef bint chunk_is_finite(
    const kernels *table, const Chunk *chunk, const real *rows, Py_ssize_t width, const real *targets,
    Py_ssize_t output_dim, const Py_ssize_t *target_first, const Py_ssize_t *members, Py_ssize_t first_step,
    bint every_step,
) noexcept nogil:
    """Whether a chunk's inputs and targets are finite; rows, targets NULL: not looked at."""
    cdef Py_ssize_t b, n
    for b in range(chunk.batch.size):
        n = chunk.lengths[b]
        if rows != NULL and not are_finite(table, n * width, rows + chunk.first[b] * width):
            return False
        if targets == NULL:
            continue
        if every_step:
            if not are_finite(table, n * output_dim, targets + (target_first[members[b]] + first_step) * output_dim):
                return False
        elif not are_finite(table, output_dim, targets + target_first[members[b]] * output_dim):
            return False
    return True


cdef States no_states() noexcept nogil:
    cdef States states
    states.h, states.C, states.rows = NULL, NULL, 0
    return states


def _run(
    const real[:, ::1] rows, plan, Py_ssize_t step, Py_ssize_t last_step, int phases, double seconds,
):
    cdef real[::1] parameters = plan.parameters, gradient = plan.gradient
    cdef const real[:, ::1] targets = plan.targets
    cdef const Py_ssize_t[::1] labels = plan.labels, members = plan.members
    cdef const Py_ssize_t[::1] sequence_first = plan.sequences.first, sequence_lengths = plan.sequences.lengths
    cdef const Py_ssize_t[::1] target_first = plan.target_first
    cdef const Py_ssize_t[::1] draw_order = plan.draw_order, starts = plan.starts, first_steps = plan.first_steps
    cdef Py_ssize_t[::1] first = plan.first, lengths = plan.lengths, batch_sizes = plan.batch_sizes
    cdef double[::1] losses = plan.losses, counts = plan.counts, norms = plan.norms
    cdef uint64_t[::1] updates = plan.updates
    cdef real[:, :, ::1] carried_h = plan.carried_h, carried_C = plan.carried_C
    cdef double clip_norm = plan.clip_norm, scale
    optimizer = plan.optimizer
    cdef bint scores = phases & _LOSS, learns = phases & _UPDATE, draws = plan.dropout_seed is not None
    if learns:
        optimizer.check(plan.parameters)  # callbacks may have changed its settings
    cdef const double[::1] settings = optimizer._settings if learns else None
    cdef double[::1] powers = optimizer._powers if learns else None
    cdef real[:, ::1] moments = optimizer._begin(plan.parameters) if learns else None
    cdef real[:, ::1] backup = plan.backup
    cdef double[::1] sums = plan.sums

    cdef const double[::1] loss_settings = plan.loss._settings if scores else None

    cdef LayerStack stack = plan.stack
    cdef Head top = plan.head
    cdef Loss loss
    cdef Optimizer updater
    cdef StackData *s = &stack.data
    cdef HeadData *head = &top.data
    cdef const real *weights = &parameters[0]
    cdef const real *all_targets = &targets[0, 0] if targets.shape[0] > 0 else NULL
    cdef const real *unchecked_rows = &rows[0, 0] if plan.unchecked_X and phases & _FORWARD else NULL
    cdef const real *unchecked_targets = all_targets if plan.unchecked_Y and phases & _FORWARD else NULL
    cdef const real *dfinal
    cdef Py_ssize_t N = members.shape[0], batch_size = first.shape[0], start, first_output
    cdef uint64_t seed = plan.dropout_seed if draws else 0
    cdef States none = no_states(), initial, carried = none
    cdef Rows x, dH, nowhere
    cdef Data data
    cdef Chunk chunk
    cdef Batch *batch = &chunk.batch
    cdef double head_work = <double> head.output_dim * head.features
    cdef Region region
    cdef Timer timer
    cdef int outcome = _DONE

    nowhere.data, nowhere.first, nowhere.width, nowhere.step_stride, nowhere.sequence_stride = NULL, NULL, 0, 0, 0
    x.data, x.first, x.width, x.step_stride, x.sequence_stride = <void *> &rows[0, 0], &first[0], rows.shape[1], 1, 0
    data.first, data.lengths, data.target_first = &sequence_first[0], &sequence_lengths[0], &target_first[0]
    chunk.first, chunk.lengths, chunk.batch_sizes = &first[0], &lengths[0], &batch_sizes[0]
    batch.state_rows, batch.masks.mask_rows = NULL, NULL
    if carried_h.shape[0] > 0:
        carried.h, carried.C, carried.rows = &carried_h[0, 0, 0], &carried_C[0, 0, 0], batch_size
    batch.size, batch.steps = batch_size, s.steps
    if scores:
        loss = make_loss[real](plan.loss.kind, loss_settings, targets, labels, &target_first[0])
    if learns:
        make_optimizer[real](
            &updater, head.table, optimizer.kind, settings, powers, moments, parameters, gradient, backup,
        )
    cdef int threads = recruit(plan.threads, stack_work(s, batch, phases & _BACKWARD))

    with nogil:
        begin_region(&region, threads)
        start_timer(&timer, seconds)
        try:
            while step < last_step:
                start = starts[step]
                take_chunk(&chunk, &data, &members[start], min(batch_size, N - start), first_steps[step], s.steps)
                if unchecked_rows != NULL or unchecked_targets != NULL:
                    if not chunk_is_finite(
                        head.table, &chunk, unchecked_rows, x.width, unchecked_targets, head.output_dim,
                        data.target_first, &members[start], first_steps[step], head.readout == READOUT_STEPS,
                    ):
                        outcome = _NOT_FINITE
                        break
                if draws:
                    philox_key(seed, updates[0], batch.masks.key)
                    batch.masks.first_step = first_steps[step]
                    if draw_order.shape[0] > 0:
                        batch.masks.mask_rows = &draw_order[start]
                initial = carried if first_steps[step] > 0 else none
                if phases & _FORWARD:
                    pack_layers(&region, s, weights, batch, False, False)
                    layers_forward(&region, s, weights, batch, &x, &initial, &nowhere, &carried)
                    first_output = 0 if head.readout == READOUT_STEPS else chunk.ended
                    head_forward(&region, head, s, batch, first_steps[step], first_output, weights)
                    losses[step], counts[step], norms[step] = 0, head.rows, 0
                if phases & _LOSS and counts[step] > 0:
                    losses[step] = batch_loss(&region, head, &loss, &members[start], first_steps[step], weights)
                    if not isfinite(losses[step]):
                        outcome = _NOT_FINITE
                        break
                if phases & _BACKWARD and counts[step] > 0:
                    head_backward(&region, head, s, batch, weights, &dH, &dfinal, &gradient[0])
                    pack_layers(&region, s, weights, batch, True, False)
                    layers_backward(
                        &region, s, weights, batch, &dH, dfinal, &none, &none, &nowhere, &gradient[0],
                    )
                    norms[step] = norm(&region, head.table, gradient, sums)
                    if not isfinite(norms[step]):
                        outcome = _NOT_FINITE
                        break
                if phases & _UPDATE and counts[step] > 0:
                    scale = clip_norm / norms[step] if norms[step] > clip_norm else 1
                    if not update(&region, &updater, scale, weights):
                        outcome = _UPDATE_NOT_FINITE
                        break
                    updates[0] += 1
                step += 1
                if elapsed(&timer, 5000 + 3 * (chunk.rows * <double> s.parameter_count + counts[step - 1] * head_work)):
                    break
        finally:
            end_region(&region)
    return step, outcome


def run(plan, Py_ssize_t step, Py_ssize_t last_step, int phases, double seconds):
    """Run steps of an epoch until `last_step`, until `seconds` have passed at a step's end, or until one fails.

    Parameters
    ----------
    plan : Plan
        The arrays and settings (plan.py); parameters, optimizer state, losses and norms change in place.
    step, last_step : int
        The range of passes: entries of ``plan.starts``.
    phases : int
        A sum of FORWARD, LOSS, BACKWARD, UPDATE. BACKWARD alone takes the loss's gradient from ``head.doutputs``.
    seconds : float
        When to come back, for progress, callbacks and signals.

    Returns
    -------
    step : int
        The next step; if not DONE, the step that failed, whose update was not made.
    outcome : int
        NOT_FINITE if this step's loss or its gradient's norm is NaN or infinite, or its data where they are unchecked;
        UPDATE_NOT_FINITE if its update leads to such a number; else DONE.
    """
    return _run(plan.rows, plan, step, last_step, phases, seconds)
