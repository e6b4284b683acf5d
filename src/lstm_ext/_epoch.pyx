"""The training loop: gather a batch, forward, loss, backward, clip, update; many batches in one call, without the GIL.

`run` takes a plan (plan.py) and a range of steps. Its phases can be asked for one by one, so that a loss or an
optimizer written in Python goes between them; the loop is the same.

Outputs are stored with time descending: slot s of (slots, B, O) belongs to h_{T - s}. The last step alone is then just
one slot, and the rows stand in the order in which weight gradients are summed.
"""
from libc.math cimport isfinite, sqrt
from libc.string cimport memset

from lstm_ext._kernels cimport (
    SUM_BLOCK, adam, cross_entropy, kernels, real, sgd, squared_error, sum_of_squares, table_at,
)
from lstm_ext._passes cimport sequence_backward, sequence_forward, shared_work
from lstm_ext._products cimport multiply, pack_cell, pack_panels, tiles, weight_gradient
from lstm_ext._threads cimport (
    Call, Timer, begin, check_signals, elapsed, end, recruit, share, start_timer, team_task,
)

cdef enum:
    _FORWARD = 1
    _LOSS = 2
    _BACKWARD = 4
    _UPDATE = 8
    LOSS_ROWS = 256  # losses are summed in blocks of so many rows, and the blocks in order

FORWARD, LOSS, BACKWARD, UPDATE = _FORWARD, _LOSS, _BACKWARD, _UPDATE


cdef int head_forward(
    Call *call, const kernels *table, Py_ssize_t steps, Py_ssize_t slots, Py_ssize_t batch, Py_ssize_t hidden_dim,
    const real *W_y, const real *b_y, const real[:, :, ::1] hx, real[::1] packed, real[:, :, ::1] outputs,
) except -1 nogil:
    """outputs = b_y + W_y h of every slot; outputs (>= slots, >= B, O) with the rows of the slots in use packed."""
    cdef Py_ssize_t output_dim = outputs.shape[2], s
    pack_panels(call, table, hidden_dim, output_dim, W_y, 1, hidden_dim, &packed[0])
    for s in range(slots):
        multiply(
            call, table, batch, output_dim, hidden_dim, &hx[steps - s, 0, 0], hx.shape[2], &packed[0], b_y, 0,
            &outputs[0, 0, 0] + s * batch * output_dim, output_dim,
        )
    return 0


cdef int head_backward(
    Call *call, const kernels *table, Py_ssize_t steps, Py_ssize_t slots, Py_ssize_t batch, bint every_step,
    const real *W_y, const real[:, :, ::1] doutputs, real[::1] packed, real[:, ::1] dh, real[:, :, ::1] dH,
) except -1 nogil:
    """doutputs W_y: to dH (>= B, >= T, H) of every step, with dh zero; or to dh (>= B, H) of the last."""
    cdef Py_ssize_t hidden_dim = dh.shape[1], output_dim = doutputs.shape[2], ld = hidden_dim, s
    cdef real *to = &dh[0, 0]
    pack_panels(call, table, output_dim, hidden_dim, W_y, hidden_dim, 1, &packed[0])
    if every_step:
        memset(to, 0, batch * hidden_dim * sizeof(real))
        ld = dH.shape[1] * hidden_dim
    for s in range(slots):
        if every_step:
            to = &dH[0, steps - 1 - s, 0]
        multiply(
            call, table, batch, hidden_dim, output_dim, &doutputs[0, 0, 0] + s * batch * output_dim, output_dim,
            &packed[0], <const real *> NULL, 0, to, ld,
        )
    return 0


cdef double batch_loss(
    Call *call, const kernels *table, Py_ssize_t steps, Py_ssize_t slots, bint every_step, const Py_ssize_t[::1] first,
    const Py_ssize_t[::1] members, const real[:, ::1] targets, const Py_ssize_t[::1] labels,
    const real[:, :, ::1] outputs, real[:, :, ::1] doutputs,
) except? -1 nogil:
    """The mean loss of a batch: squared error against `targets`, or cross-entropy if there are `labels`.

    outputs (>= slots, >= B, O) with the rows of the slots in use packed: row s * B + b;  doutputs likewise, out.
    """
    cdef Py_ssize_t batch = first.shape[0], output_dim = outputs.shape[2], s, b, row
    cdef bint classes = labels.shape[0] > 0
    cdef double total = 0, block = 0, count = <double> slots * batch
    cdef const real *y = &outputs[0, 0, 0]
    cdef real *dy = &doutputs[0, 0, 0]
    if not classes:
        count *= output_dim
    for s in range(slots):
        check_signals(call, 16. * batch * output_dim)  # an exponential is worth some multiply-adds
        for b in range(batch):
            row = first[b] + steps - 1 - s if every_step else members[b]
            if classes:
                block += cross_entropy(table, output_dim, y, labels[row], 1 / count, dy)
            else:
                block += squared_error(table, output_dim, y, &targets[row, 0], 2 / count, dy)
            y += output_dim
            dy += output_dim
            if (s * batch + b + 1) % LOSS_ROWS == 0:
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


cdef double norm(Call *call, const kernels *table, const real[::1] x, double[::1] sums) except? -1 nogil:
    """The Euclidean norm. Blocks of SUM_BLOCK are summed by themselves, to `sums`, and these in their order."""
    cdef Squares p
    cdef Py_ssize_t n = x.shape[0], count = tiles(n, SUM_BLOCK), j
    cdef double total = 0
    p.table, p.n, p.x, p.sums = table, n, &x[0], &sums[0]
    share(call, <team_task> squares_part[real], &p, count, 2. * n)
    for j in range(count):
        total += sums[j]
    return sqrt(total)


cdef struct Update:
    # One step of an optimizer: see `update`.
    const kernels *table
    Py_ssize_t n
    void *parameters
    const void *gradient
    void *first_moment
    void *second_moment
    const double *settings
    double scale, step_size, root_correction
    bint is_adam


cdef void update_part(Update *p, Py_ssize_t index, const real *tag) noexcept nogil:
    cdef Py_ssize_t start = index * SUM_BLOCK, n = min(SUM_BLOCK, p.n - start)
    cdef real *parameters = <real *> p.parameters + start
    cdef const real *gradient = <const real *> p.gradient + start
    cdef real *m = <real *> p.first_moment + start if p.first_moment != NULL else NULL
    if p.is_adam:
        adam(
            p.table, n, parameters, gradient, m, <real *> p.second_moment + start, p.scale, p.step_size,
            p.root_correction, p.settings[1], p.settings[2], p.settings[3],
        )
    else:
        sgd(p.table, n, parameters, gradient, m, p.scale, p.settings[0], p.settings[1])


cdef int update(
    Call *call, const kernels *table, real[::1] parameters, const real[::1] gradient, double scale,
    const double[::1] settings, double[::1] powers, real[:, ::1] moments,
) except -1 nogil:
    """SGD for settings (learning_rate, momentum); Adam for (learning_rate, beta1, beta2, epsilon).

    powers (beta1^t, beta2^t) and moments (velocity, or m and v) change in place.
    """
    cdef Update p
    cdef Py_ssize_t n = parameters.shape[0]
    cdef bint watches
    p.table, p.n, p.parameters, p.gradient, p.scale = table, n, &parameters[0], &gradient[0], scale
    p.settings = &settings[0]
    p.first_moment = &moments[0, 0] if moments.shape[0] > 0 else NULL
    p.second_moment = &moments[1, 0] if moments.shape[0] > 1 else NULL
    p.is_adam = settings.shape[0] > 2
    if p.is_adam:
        powers[0] *= settings[1]
        powers[1] *= settings[2]
        p.step_size, p.root_correction = settings[0] / (1 - powers[0]), sqrt(1 - powers[1])
    watches = call.watches
    call.watches = False  # an update that is begun is ended
    share(call, <team_task> update_part[real], &p, tiles(n, SUM_BLOCK), 4. * n)
    call.watches = watches
    return 0


cdef int check_state(
    Py_ssize_t n, const double[::1] settings, const double[::1] powers, const real[:, ::1] moments,
) except -1:
    """Raise unless an optimizer's public arrays have the shapes that `update` relies on."""
    cdef Py_ssize_t most = settings.shape[0] // 2, least = 2 if most == 2 else 0  # rows for Adam, SGD
    cdef bint fits = powers.shape[0] == 2 and settings.shape[0] in (2, 4) and least <= moments.shape[0] <= most
    if not fits or (moments.shape[0] > 0 and moments.shape[1] != n):
        raise ValueError(
            f"optimizer.moments has shape {(moments.shape[0], moments.shape[1])}; expected {most} rows of {n}"
        )
    return 0


def update_parameters(
    int isa, int threads, const double[::1] settings, double[::1] powers, real[:, ::1] moments, real[::1] parameters,
    const real[::1] gradient,
):
    """Make one update by itself, outside of the loop."""
    cdef Call call
    check_state(parameters.shape[0], settings, powers, moments)
    threads = recruit(threads, 4. * parameters.shape[0])
    with nogil:
        begin(&call, threads)
        update(&call, table_at(isa), parameters, gradient, 1, settings, powers, moments)
        end(&call)


def _run(
    const real[:, ::1] rows, plan, Py_ssize_t step, Py_ssize_t last_step, int phases, double seconds,
):
    cdef real[::1] parameters = plan.parameters, gradient = plan.gradient
    cdef const real[:, ::1] targets = plan.targets
    cdef const Py_ssize_t[::1] labels = plan.labels, offsets = plan.offsets, order = plan.order
    cdef Py_ssize_t[::1] first = plan.first
    cdef double[::1] losses = plan.losses, norms = plan.norms
    cdef bint every_step = plan.every_step
    cdef double clip_norm = plan.clip_norm
    optimizer = plan.optimizer
    cdef bint updates = phases & _UPDATE
    cdef const double[::1] settings = optimizer.settings if updates else None
    cdef double[::1] powers = optimizer.powers if updates else None
    cdef real[:, ::1] moments = optimizer.state(plan.parameters) if updates else None

    if updates:
        check_state(parameters.shape[0], settings, powers, moments)

    activations, head = plan.activations, plan.head
    cdef real[:, :, ::1] hx = activations.ws_hx, C = activations.ws_C, gates = activations.ws_gates
    cdef real[:, :, ::1] outputs = head.ws_outputs, doutputs = head.ws_doutputs, no_array = hx[:0]
    cdef real[::1] packed = activations.scratch_packed, packed_y = head.scratch_packed, no_panels = packed[:0]
    cdef real[::1] packed_y_backward = head.scratch_packed_backward

    cdef bint backward = phases & _BACKWARD
    scratch, states = plan.scratch, plan.state_gradients
    cdef real[:, :, ::1] dH = states.scratch_dH if backward else None
    cdef real[:, ::1] dh = states.scratch_dh if backward else None, dC = states.scratch_dC if backward else None
    cdef real[:, ::1] dz = scratch.scratch_dz if backward else None
    cdef real[::1] packed_h = scratch.scratch_packed_h if backward else None
    cdef real[::1] panels = scratch.scratch_panels if backward else None
    cdef double[::1] sums = scratch.scratch_sums if backward else None

    cdef Py_ssize_t N = order.shape[0], batch_size = first.shape[0]
    cdef Py_ssize_t input_dim = rows.shape[1], hidden_dim = C.shape[2], output_dim = outputs.shape[2]
    cdef Py_ssize_t K = hidden_dim + input_dim, start, batch, steps, slots, b
    cdef real *W = &parameters[0]
    cdef real *b_gates = W + 4 * hidden_dim * K
    cdef real *W_y = b_gates + 4 * hidden_dim
    cdef real *b_y = W_y + output_dim * hidden_dim
    cdef real *dW = &gradient[0]
    cdef real *db = dW + 4 * hidden_dim * K
    cdef real *dW_y = db + 4 * hidden_dim
    cdef real *db_y = dW_y + output_dim * hidden_dim
    cdef double cell_work = 4. * hidden_dim * K, head_work = <double> output_dim * hidden_dim, scale
    cdef const kernels *table = table_at(plan.isa)
    cdef int threads = recruit(
        plan.threads, shared_work(plan.sequences.longest, batch_size, input_dim, hidden_dim, backward),
    )
    cdef Call call
    cdef Timer timer
    cdef bint finite = True

    with nogil:
        begin(&call, threads)
        start_timer(&timer, seconds)
        try:
            while step < last_step:
                start = step * batch_size
                batch = min(batch_size, N - start)
                for b in range(batch):
                    first[b] = offsets[order[start + b]]
                steps = offsets[order[start] + 1] - first[0]
                slots = steps if every_step else 1
                if phases & _FORWARD:
                    memset(&C[0, 0, 0], 0, batch * hidden_dim * sizeof(real))
                    for b in range(batch):
                        memset(&hx[0, b, 0], 0, hidden_dim * sizeof(real))
                    pack_cell(&call, table, input_dim, hidden_dim, W, b_gates, &packed[0])
                    sequence_forward(&call, table, steps, rows, first[:batch], packed, hx, C, gates, no_array)
                    head_forward(&call, table, steps, slots, batch, hidden_dim, W_y, b_y, hx, packed_y, outputs)
                if phases & _LOSS:
                    losses[step] = batch_loss(
                        &call, table, steps, slots, every_step, first[:batch], order[start:start + batch], targets,
                        labels, outputs, doutputs,
                    )
                    if not isfinite(losses[step]):
                        finite = False
                        break
                if phases & _BACKWARD:
                    weight_gradient(
                        &call, table, slots * batch, batch, output_dim, &doutputs[0, 0, 0], output_dim, hidden_dim, hx,
                        steps, False, dW_y, db_y, &panels[0],
                    )
                    head_backward(
                        &call, table, steps, slots, batch, every_step, W_y, doutputs, packed_y_backward, dh, dH,
                    )
                    memset(&dC[0, 0], 0, batch * hidden_dim * sizeof(real))
                    pack_panels(&call, table, 4 * hidden_dim, hidden_dim, W, K, 1, &packed_h[0])
                    sequence_backward(
                        &call, table, steps, batch, input_dim, hx, C, gates, packed_h, no_panels, dH, False, dh, dC,
                        no_array, dW, db, dz, panels,
                    )
                    norms[step] = norm(&call, table, gradient, sums)
                    if not isfinite(norms[step]):
                        finite = False
                        break
                if phases & _UPDATE:
                    scale = clip_norm / norms[step] if norms[step] > clip_norm else 1
                    update(&call, table, parameters, gradient, scale, settings, powers, moments)
                step += 1
                if elapsed(&timer, 5000 + 3 * batch * (steps * cell_work + slots * head_work)):
                    break
        finally:
            end(&call)
    return step, finite


def run(plan, Py_ssize_t step, Py_ssize_t last_step, int phases, double seconds):
    """Run steps of an epoch until `last_step`, until `seconds` have passed at a step's end, or until one is not finite.

    Parameters
    ----------
    plan : Plan
        The arrays and settings (plan.py); parameters, optimizer state, losses and norms change in place.
    step, last_step : int
        The range of batches of ``plan.order``.
    phases : int
        A sum of FORWARD, LOSS, BACKWARD, UPDATE. BACKWARD alone takes the loss's gradient from ``doutputs``.
    seconds : float
        When to come back, for progress, callbacks and signals.

    Returns
    -------
    step : int
        The next step; if not finite, the step that failed, whose update was not made.
    finite : bool
        False if this step's loss or its gradient's norm is NaN or infinite.
    """
    return _run(plan.rows, plan, step, last_step, phases, seconds)
