"""The training loop: gather a batch, forward, loss, backward, clip, update; many batches in one call, without the GIL.

`run` takes a plan (plan.py) and a range of passes: batches, or with truncated backpropagation chunks of their steps.
Its phases can be asked for one by one, so that a loss or an optimizer written in Python goes between them; the loop is
the same.
"""
from libc.math cimport isfinite, sqrt
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from lstm_ext._heads cimport READOUT_STEPS, Head, HeadData, head_backward, head_forward
from lstm_ext._kernels cimport (
    SUM_BLOCK, adam, are_finite, cross_entropy, kernels, philox_key, real, sgd, squared_error, sum_of_squares, table_at,
)
from lstm_ext._passes cimport Rows
from lstm_ext._products cimport batch_size_at, ceil_div
from lstm_ext._stack cimport (
    Batch, StackData, LayerStack, States, layers_backward, layers_forward, pack_layers, stack_work,
)
from lstm_ext._threads cimport (
    Region, Timer, begin_region, check_signals, elapsed, end_region, recruit, parallel_for, start_timer, team_task,
)

cdef enum:
    _FORWARD = 1
    _LOSS = 2
    _BACKWARD = 4
    _UPDATE = 8
    LOSS_ROWS = 256  # losses are summed in blocks of so many rows, and the blocks in order
    MOST_VECTORS = 3  # that an update changes: the parameters and two moments

cdef enum:  # how a run ended
    _DONE = 0
    _NOT_FINITE = 1
    _UPDATE_NOT_FINITE = 2

FORWARD, LOSS, BACKWARD, UPDATE = _FORWARD, _LOSS, _BACKWARD, _UPDATE
DONE, NOT_FINITE, UPDATE_NOT_FINITE = _DONE, _NOT_FINITE, _UPDATE_NOT_FINITE
NORM_BLOCK = SUM_BLOCK  # a norm is summed in blocks of so many elements


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


cdef double batch_loss(
    Region *region, const HeadData *head, const Chunk *chunk, const Py_ssize_t *target_first, const Py_ssize_t *members,
    Py_ssize_t first_step, const real *targets, const Py_ssize_t *labels,
) except? -1 nogil:
    """The mean loss of the outputs, and its gradient by them: squared error, or cross-entropy if there are `labels`.

    targets, labels  (n, O) or (n)
    target_first     the row of each sequence, or of its first step if every step has one
    """
    cdef Py_ssize_t output_dim = head.output_dim, t = head.slots, b, row, n = 0
    cdef double total = 0, block = 0, count = <double> head.rows
    cdef const real *y = <const real *> head.outputs
    cdef real *dy = <real *> head.doutputs
    if labels == NULL:
        count *= output_dim
    while t > 0:
        t -= 1
        check_signals(region, 16. * head.x.batch * output_dim)  # an exponential is worth some multiply-adds
        for b in range(head.begin, head.begin + batch_size_at(head.x.batch_sizes, head.x.batch, t)):
            row = target_first[members[b]]
            if head.readout == READOUT_STEPS:
                row += first_step + t
            if labels != NULL:
                block += cross_entropy(head.table, output_dim, y, labels[row], 1 / count, dy)
            else:
                block += squared_error(head.table, output_dim, y, targets + row * output_dim, 2 / count, dy)
            y += output_dim
            dy += output_dim
            n += 1
            if n % LOSS_ROWS == 0:
                total += block
                block = 0
    return (total + block) / count


cdef struct Squares:
    const kernels *table
    Py_ssize_t n
    const void *x
    double *sums


cdef void squares_part(Squares *p, Py_ssize_t index, const real *tag) noexcept nogil:
    cdef Py_ssize_t start = index * SUM_BLOCK
    p.sums[index] = sum_of_squares(p.table, min(SUM_BLOCK, p.n - start), <const real *> p.x + start)


cdef double norm(Region *region, const kernels *table, const real[::1] x, double[::1] sums) except? -1 nogil:
    """The Euclidean norm. Blocks of SUM_BLOCK are summed by themselves, to `sums`, and these in their order."""
    cdef Squares p
    cdef Py_ssize_t n = x.shape[0], count = ceil_div(n, SUM_BLOCK), j
    cdef double total = 0
    p.table, p.n, p.x, p.sums = table, n, &x[0], &sums[0]
    parallel_for(region, <team_task> squares_part[real], &p, count, 2. * n)
    for j in range(count):
        total += sums[j]
    return sqrt(total)


cdef struct Update:
    # One step of an optimizer: see `new_update`.
    const kernels *table
    Py_ssize_t n, vectors  # of n numbers: the parameters and the moments
    void *parameters
    void *moments  # (vectors - 1, n)
    void *backup  # (vectors, n): what they were before
    const void *gradient
    const double *settings
    double scale, step_size, root_correction
    double[2] powers  # beta1^t and beta2^t of this step
    bint is_adam
    int not_finite  # set by any thread, read after all blocks are done


cdef void update_part(Update *p, Py_ssize_t index, const real *tag) noexcept nogil:
    """Update one block: copy it to the backup, change it, and look for NaN and Inf while it is in the cache."""
    cdef Py_ssize_t start = index * SUM_BLOCK, n = min(SUM_BLOCK, p.n - start), j
    cdef const real *gradient = <const real *> p.gradient + start
    cdef real *block[MOST_VECTORS]
    block[0] = <real *> p.parameters + start
    for j in range(1, MOST_VECTORS):
        block[j] = <real *> p.moments + (j - 1) * p.n + start if j < p.vectors else NULL
    for j in range(p.vectors):
        memcpy(<real *> p.backup + j * p.n + start, block[j], n * sizeof(real))
    if p.is_adam:
        adam(
            p.table, n, block[0], gradient, block[1], block[2], p.scale, p.step_size, p.root_correction, p.settings[1],
            p.settings[2], p.settings[3],
        )
    else:
        sgd(p.table, n, block[0], gradient, block[1], p.scale, p.step_size, p.settings[1])
    for j in range(p.vectors):
        if not are_finite(p.table, n, block[j]):
            p.not_finite = True


cdef Update new_update(
    const kernels *table, real[::1] parameters, const real[::1] gradient, double scale, const double[::1] settings,
    const double[::1] powers, real[:, ::1] moments, real[:, ::1] backup,
) noexcept nogil:
    """SGD for settings (learning_rate, momentum); Adam for (learning_rate, beta1, beta2, epsilon).

    powers   (beta1^t, beta2^t) after the step before
    moments  velocity, or m and v
    backup   a row for the parameters and one for each moment
    """
    cdef Update p
    p.table, p.n, p.vectors, p.scale = table, parameters.shape[0], 1 + moments.shape[0], scale
    p.parameters, p.gradient, p.settings = &parameters[0], &gradient[0], &settings[0]
    p.moments = &moments[0, 0] if moments.shape[0] > 0 else NULL
    p.backup = &backup[0, 0]
    p.is_adam, p.not_finite = settings.shape[0] > 2, False
    p.powers[0], p.powers[1] = powers[0], powers[1]
    p.step_size, p.root_correction = settings[0], 1
    if p.is_adam:
        p.powers[0] *= settings[1]
        p.powers[1] *= settings[2]
        p.step_size, p.root_correction = settings[0] / (1 - p.powers[0]), sqrt(1 - p.powers[1])
    return p


cdef bint update(
    Region *region, const kernels *table, real[::1] parameters, const real[::1] gradient, double scale,
    const double[::1] settings, double[::1] powers, real[:, ::1] moments, real[:, ::1] backup,
) except -1 nogil:
    """Change parameters, moments and powers in place and return True; change nothing and return False on NaN or Inf."""
    cdef Update p = new_update(table, parameters, gradient, scale, settings, powers, moments, backup)
    cdef bint watches = region.watches
    region.watches = False  # an update that is begun is ended
    parallel_for(region, <team_task> update_part[real], &p, ceil_div(p.n, SUM_BLOCK), 4. * p.n)
    region.watches = watches
    if p.not_finite:
        parameters[:] = backup[0]
        moments[:] = backup[1:p.vectors]
        return False
    powers[0], powers[1] = p.powers[0], p.powers[1]
    return True


cdef int check_state(
    Py_ssize_t n, const double[::1] settings, const double[::1] powers, const real[:, ::1] moments,
    const real[:, ::1] backup,
) except -1:
    """Raise unless an optimizer's public arrays have the shapes that `update` relies on."""
    cdef Py_ssize_t most = settings.shape[0] // 2, least = 2 if most == 2 else 0  # rows for Adam, SGD
    cdef bint fits = powers.shape[0] == 2 and settings.shape[0] in (2, 4) and least <= moments.shape[0] <= most
    if not fits or (moments.shape[0] > 0 and moments.shape[1] != n):
        raise ValueError(
            f"optimizer.moments has shape {(moments.shape[0], moments.shape[1])}; expected {most} rows of {n}"
        )
    if backup.shape[0] <= moments.shape[0] or backup.shape[1] != n:
        raise ValueError(f"backup has shape {(backup.shape[0], backup.shape[1])}; expected {most + 1} rows of {n}")
    return 0


def update_parameters(
    int isa, int threads, const double[::1] settings, double[::1] powers, real[:, ::1] moments, real[::1] parameters,
    const real[::1] gradient, real[:, ::1] backup,
) -> bool:
    """Make one update outside of the loop. As for `update`, return whether it was made."""
    cdef Region region
    cdef bint made
    check_state(parameters.shape[0], settings, powers, moments, backup)
    threads = recruit(threads, 4. * parameters.shape[0])
    with nogil:
        begin_region(&region, threads)
        try:
            made = update(&region, table_at(isa), parameters, gradient, 1, settings, powers, moments, backup)
        finally:
            end_region(&region)
    return made


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
    cdef bint learns = phases & _UPDATE, draws = plan.dropout_seed is not None
    if learns:
        optimizer.check(plan.parameters)  # callbacks may have changed its settings
    cdef const double[::1] settings = optimizer._settings if learns else None
    cdef double[::1] powers = optimizer._powers if learns else None
    cdef real[:, ::1] moments = optimizer._begin(plan.parameters) if learns else None
    cdef real[:, ::1] backup = plan.backup
    cdef double[::1] sums = plan.sums

    if learns:
        check_state(parameters.shape[0], settings, powers, moments, backup)

    cdef LayerStack stack = plan.stack
    cdef Head top = plan.head
    cdef StackData *s = &stack.data
    cdef HeadData *head = &top.data
    cdef const real *weights = &parameters[0]
    cdef const real *all_targets = &targets[0, 0] if targets.shape[0] > 0 else NULL
    cdef const Py_ssize_t *all_labels = &labels[0] if labels.shape[0] > 0 else NULL
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
                    losses[step] = batch_loss(
                        &region, head, &chunk, data.target_first, &members[start], first_steps[step], all_targets,
                        all_labels,
                    )
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
                    if not update(
                        &region, head.table, parameters, gradient, scale, settings, powers, moments, backup,
                    ):
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
