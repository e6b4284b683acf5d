"""The passes of one LSTM layer on arrays that the caller owns: packing, forward, backward, weight gradient.

Design
------
- Time runs outside, blocks of units and tiles of rows inside; a tile is one call of a leaf kernel (kernels.h).
- ``hx`` (slots, B, ld) holds the rows [h_{t-1} (H) | x_t (I)] of step t: the very operand of W. Step t writes h_t to
  the next slot, so t = 0 is no special case. T + 1 slots keep everything for the backward pass; two slots alternate.
- Sums keep the contract's order: bias, x, h; weight gradients t from the last to the first, b ascending. A sum that is
  cut goes on from its stored partial result, so no block size changes a bit.
- Nothing is allocated here and no Python object is touched; the caller owns every array (workspace.py).

Notation: B batch, T steps, I input_dim, H hidden_dim, gates in the order i, f, g, o.
"""
cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.exc cimport PyErr_CheckSignals
from libc.string cimport memcpy, memset

from numpy import empty, ndarray, zeros

from lstm_ext._kernels cimport (
    TILE_VECTORS, all_finite, cell_backward, cell_forward, denormals_flush, denormals_restore, kernels, lanes, matmul,
    outer, real, table_at, tile_rows, wall_seconds, zeros_f32, zeros_f64,
)

# The block of dy that one pass of a weight gradient works on. A sum goes on from the stored partial result, so the
# numbers change no bit.
cdef enum:
    OUTER_ROWS = 256
    OUTER_COLUMNS = 192


# A check waits 5 ms for the GIL while another thread holds it, so not more often.
cdef double SIGNAL_SECONDS = 0.1


cdef void begin(Call *call) noexcept nogil:
    call.denormals = denormals_flush()
    start_timer(&call.signals, SIGNAL_SECONDS)


cdef void end(Call *call) noexcept nogil:
    denormals_restore(call.denormals)


cdef void start_timer(Timer *timer, double seconds) noexcept nogil:
    timer.work = 0
    timer.deadline = wall_seconds() + seconds


cdef bint elapsed(Timer *timer, double work) noexcept nogil:
    """Whether the deadline has passed; looks at the clock only after every so many multiply-adds.

    What costs time beside them is counted as 500 for each call.
    """
    timer.work += work + 500
    if timer.work < 1e7:
        return False
    timer.work = 0
    return wall_seconds() >= timer.deadline


cdef int check_signals(Call *call, double work) except -1 nogil:
    """Let Python's signal handlers run now and then. What they raise ends the pass, which has changed scratch only."""
    if elapsed(&call.signals, work):
        denormals_restore(call.denormals)
        with gil:
            PyErr_CheckSignals()
        call.denormals = denormals_flush()
        start_timer(&call.signals, SIGNAL_SECONDS)
    return 0


cdef inline Py_ssize_t tiles(Py_ssize_t n, Py_ssize_t tile) noexcept nogil:
    """How many tiles of up to `tile` elements cover n."""
    return (n + tile - 1) // tile


cdef inline Py_ssize_t panel_width(Py_ssize_t columns, Py_ssize_t V) noexcept nogil:
    """The lanes of the panel that serves the next `columns` columns: 1, 2 or 4 vectors."""
    if columns > 2 * V:
        return TILE_VECTORS * V
    return 2 * V if columns > V else V


cdef Py_ssize_t panels_size(Py_ssize_t depth, Py_ssize_t columns, Py_ssize_t V) noexcept nogil:
    """The elements that `pack_panels` writes."""
    cdef Py_ssize_t width = TILE_VECTORS * V, whole = columns // width * width
    return depth * (whole + (panel_width(columns - whole, V) if columns > whole else 0))


cdef void pack_cell(
    const kernels *table, Py_ssize_t input_dim, Py_ssize_t hidden_dim, const real *W, const real *b, real *packed,
) noexcept nogil:
    """packed (blocks, 1 + I + H, 4, V): for each V units their biases, W_x, W_h, as cell_forward sums them."""
    cdef Py_ssize_t V = lanes(table, W), K = hidden_dim + input_dim, block, u, units, g, j, k
    cdef const real *row
    cdef real *lane
    for block in range(tiles(hidden_dim, V)):
        u = block * V
        units = min(V, hidden_dim - u)
        if units < V:
            memset(packed, 0, (1 + K) * TILE_VECTORS * V * sizeof(real))
        for g in range(TILE_VECTORS):
            for j in range(units):
                row = W + (g * hidden_dim + u + j) * K
                lane = packed + g * V + j
                lane[0] = b[g * hidden_dim + u + j]
                lane += TILE_VECTORS * V
                for k in range(input_dim):
                    lane[k * TILE_VECTORS * V] = row[hidden_dim + k]
                lane += input_dim * TILE_VECTORS * V
                for k in range(hidden_dim):
                    lane[k * TILE_VECTORS * V] = row[k]
        packed += (1 + K) * TILE_VECTORS * V


cdef void pack_panels(
    const kernels *table, Py_ssize_t depth, Py_ssize_t columns, const real *B, Py_ssize_t row_stride,
    Py_ssize_t column_stride, real *panels,
) noexcept nogil:
    """panels: for each group of up to 4 V columns of B (depth, columns) an array (depth, width), padded with zeros."""
    cdef Py_ssize_t V = lanes(table, B), first = 0, width, count, k, j
    while first < columns:
        width = panel_width(columns - first, V)
        count = min(width, columns - first)
        for k in range(depth):
            for j in range(count):
                panels[j] = B[k * row_stride + (first + j) * column_stride]
            for j in range(count, width):
                panels[j] = 0
            panels += width
        first += width


cdef inline const real *start_of_sum(const real *partial, bint resumed) noexcept nogil:
    """Where a sum starts: at its stored partial result, or at zeros."""
    if resumed:
        return partial
    if real is float:
        return zeros_f32
    else:
        return zeros_f64


cdef inline const real *share_ahead(
    const real *panel, Py_ssize_t size, Py_ssize_t i, Py_ssize_t depth,
) noexcept nogil:
    """What the i-th tile on a panel fetches, a line for each k: its share of the next panel, until all is fetched."""
    cdef Py_ssize_t offset = i * depth * (64 // <Py_ssize_t> sizeof(real))
    return panel + size + offset if offset < size else panel


cdef int multiply(
    Call *call, const kernels *table, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t depth, const real *A,
    Py_ssize_t lda, const real *panels, const real *start, Py_ssize_t ld_start, real *C, Py_ssize_t ldc,
) except -1 nogil:
    """C = start + A B: A (rows, depth), B (depth, columns) packed by `pack_panels`; start NULL for 0, or C."""
    cdef Py_ssize_t V = lanes(table, A), tile = tile_rows(table, A), first = 0, width, count, i, r
    cdef bint resumed = start != NULL
    if not resumed:
        start, ld_start = start_of_sum(start, False), 0
    while first < columns:
        check_signals(call, <double> rows * depth * min(TILE_VECTORS * V, columns - first))
        width = panel_width(columns - first, V)
        count = min(width, columns - first)
        for i in range(tiles(rows, tile)):
            r = i * tile
            matmul(
                table, min(tile, rows - r), count, depth, A + r * lda, lda, panels, width,
                start + r * ld_start + (first if resumed else 0), ld_start, C + r * ldc + first, ldc,
                share_ahead(panels, depth * width, i, depth),
            )
        panels += depth * width
        first += width
    return 0


cdef int outer_product(
    Call *call, const kernels *table, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t depth, const real *A,
    Py_ssize_t lda, const real *panels, bint accumulate, real *C, Py_ssize_t ldc,
) except -1 nogil:
    """C = (C or 0) + A^T B: A (depth, rows), B (depth, columns) packed as by `pack_panels`."""
    cdef Py_ssize_t V = lanes(table, A), tile = tile_rows(table, A), first = 0, width, count, i, r
    cdef Py_ssize_t ld_start = ldc if accumulate else 0
    cdef real *block
    while first < columns:
        check_signals(call, <double> rows * depth * min(TILE_VECTORS * V, columns - first))
        width = panel_width(columns - first, V)
        count = min(width, columns - first)
        for i in range(tiles(rows, tile)):
            r = i * tile
            block = C + r * ldc + first
            outer(
                table, min(tile, rows - r), count, depth, A + r, lda, panels, width,
                start_of_sum(<const real *> block, accumulate), ld_start, block, ldc,
            )
        panels += depth * width
        first += width
    return 0


cdef void pack_rows(
    const kernels *table, Py_ssize_t depth, Py_ssize_t batch, Py_ssize_t columns, const real[:, :, ::1] hx,
    Py_ssize_t t, Py_ssize_t b, real *panels,
) noexcept nogil:
    """Pack rows of hx into panels: from (t, b) on with the batch ascending, then the steps descending.

    Lanes past the columns keep what they hold: nothing that they give is stored.
    """
    cdef Py_ssize_t V = lanes(table, panels), r, first, width
    cdef const real *row
    for r in range(depth):
        row = &hx[t, b, 0]
        first = 0
        while first < columns:
            width = panel_width(columns - first, V)
            memcpy(
                panels + first * depth + r * width, row + first, min(width, columns - first) * sizeof(real),
            )
            first += width
        b += 1
        if b == batch:
            b = 0
            t -= 1


cdef int weight_gradient(
    Call *call, const kernels *table, Py_ssize_t n, Py_ssize_t batch, Py_ssize_t outputs, const real *dy,
    Py_ssize_t ld_dy, Py_ssize_t columns, const real[:, :, ::1] hx, Py_ssize_t t, bint accumulate, real *dW, real *db,
    real *panels,
) except -1 nogil:
    """dW = (dW or 0) + dy^T x, db = (db or 0) + sum of dy, over n rows.

    Row r of dy (n, outputs) belongs to row hx[t - r // batch, r % batch, :columns]: steps descend, the batch ascends.
    dW (outputs, columns), db (outputs); dy is readable 4 V past its end; panels is scratch of
    panels_size(OUTER_ROWS, columns). Cut so that a block of dy (depth, OUTER_COLUMNS) stays in the second-level cache
    while the panels of x pass by.
    """
    cdef Py_ssize_t V = lanes(table, dy), depth, start, first, i, j
    cdef real one = 1
    cdef const real *part
    for i in range(tiles(n, OUTER_ROWS)):
        start = i * OUTER_ROWS
        part = dy + start * ld_dy
        depth = min(OUTER_ROWS, n - start)
        pack_rows(table, depth, batch, columns, hx, t - start // batch, start % batch, panels)
        for j in range(tiles(outputs, OUTER_COLUMNS)):
            first = j * OUTER_COLUMNS
            outer_product(
                call, table, min(OUTER_COLUMNS, outputs - first), columns, depth, part + first, ld_dy, panels,
                accumulate, dW + first * columns, columns,
            )
        for j in range(tiles(outputs, TILE_VECTORS * V)):
            first = j * TILE_VECTORS * V
            outer(
                table, 1, min(TILE_VECTORS * V, outputs - first), depth, &one, 0, part + first, ld_dy,
                start_of_sum(<const real *> (db + first), accumulate), 0, db + first, 0,
            )
        accumulate = True
    return 0


cdef int step_forward(
    Call *call, const kernels *table, Py_ssize_t batch, Py_ssize_t input_dim, Py_ssize_t hidden_dim,
    const real *packed, const real *hx, Py_ssize_t ld, const real *C_prev, real *C, real *h, real *gates,
) except -1 nogil:
    """One step of B sequences: hx (B, ld) holds [h_prev | x], h goes to rows ld apart; arguments as for the kernel."""
    cdef Py_ssize_t V = lanes(table, packed), tile = tile_rows(table, packed), i, j, u, b
    cdef Py_ssize_t blocks = 2 if batch == 1 else 1  # one row alone leaves multiply-adds waiting for one another
    cdef Py_ssize_t units = blocks * V, size = blocks * (1 + input_dim + hidden_dim) * TILE_VECTORS * V
    for j in range(tiles(hidden_dim, units)):
        check_signals(call, <double> batch * size)
        u = j * units
        for i in range(tiles(batch, tile)):
            b = i * tile
            cell_forward(
                table, min(tile, batch - b), min(units, hidden_dim - u), input_dim, hidden_dim, hx + b * ld, ld,
                packed + j * size, C_prev + b * hidden_dim + u, C + b * hidden_dim + u, h + b * ld + u,
                gates + b * 4 * hidden_dim + u if gates != NULL else NULL,
                share_ahead(packed + j * size, size, i, input_dim + hidden_dim),
            )
    return 0


cdef int sequence_forward(
    Call *call, const kernels *table, Py_ssize_t steps, const real[:, ::1] rows, const Py_ssize_t[::1] first,
    const real[::1] packed, real[:, :, ::1] hx, real[:, :, ::1] C, real[:, :, ::1] gates, real[:, :, ::1] H,
) except -1 nogil:
    """Run T steps of a batch; sequence b reads x_t from rows[first[b] + t].

    hx     (slots, >= B, ld)  in: h_0 in slot 0; step t reads slot t mod slots and writes h_t to the next
    C      (C slots, >= B, H) likewise; one slot is updated in place
    packed                    from `pack_cell`
    gates  (T, >= B, 4 H)     out: i, f, g, o of every step; nothing is kept if it is empty
    H      (B, T, H)          out: every h_t; not wanted if it is empty
    """
    cdef Py_ssize_t batch = first.shape[0], input_dim = rows.shape[1], hidden_dim = C.shape[2], t, b, now, then
    cdef bint keep = gates.shape[0] > 0, want_H = H.shape[0] > 0
    for t in range(steps):
        now, then = t % hx.shape[0], (t + 1) % hx.shape[0]
        for b in range(batch):
            memcpy(&hx[now, b, hidden_dim], &rows[first[b] + t, 0], input_dim * sizeof(real))
        step_forward(
            call, table, batch, input_dim, hidden_dim, &packed[0], &hx[now, 0, 0], hx.shape[2],
            &C[t % C.shape[0], 0, 0], &C[(t + 1) % C.shape[0], 0, 0], &hx[then, 0, 0],
            &gates[t, 0, 0] if keep else NULL,
        )
        if want_H:
            for b in range(batch):
                memcpy(&H[b, t, 0], &hx[then, b, 0], hidden_dim * sizeof(real))
    return 0


cdef int sequence_backward(
    Call *call, const kernels *table, Py_ssize_t steps, Py_ssize_t batch, Py_ssize_t input_dim,
    const real[:, :, ::1] hx, const real[:, :, ::1] C, const real[:, :, ::1] gates, const real[::1] packed_h,
    const real[::1] packed_x, const real[:, :, ::1] dH, bint want_dh0, real[:, ::1] dh, real[:, ::1] dC,
    real[:, :, ::1] dX, real *dW, real *db, real[:, ::1] dz, real[::1] panels,
) except -1 nogil:
    """Backpropagate through T steps of sequence_forward.

    hx, C, gates  as sequence_forward left them, T + 1 slots
    packed_h      panels of W_h (4H, H); packed_x: panels of W_x (4H, I), empty if dX is not wanted
    dH (>= B, >= T, H)  in: dL/dh_t of every step from outside; empty for none
    dh (>= B, H)     in: dL/dh_T beyond dH; out: dL/dh_0 if want_dh0, else undefined
    dC (>= B, H)     in: dL/dC_T; out: dL/dC_0
    dX (B, T, I)     out, unless empty
    dW (4H, H + I), db (4H)  out
    dz (rows, ld)    scratch for whole steps: rows >= B, readable 4 V past its last row
    panels           scratch of weight_gradient
    """
    cdef Py_ssize_t hidden_dim = C.shape[2], K = hidden_dim + input_dim, ld_dz = dz.shape[1]
    cdef Py_ssize_t slots = max(1, min(steps, dz.shape[0] // batch)), slot = 0, t, b, j
    cdef bint every_step = dH.shape[0] > 0, want_dX = dX.shape[0] > 0, flushed = False
    cdef const real *start
    cdef real *step_dz
    if every_step:
        for b in range(batch):
            for j in range(hidden_dim):
                dh[b, j] += dH[b, steps - 1, j]
    for t in range(steps - 1, -1, -1):
        check_signals(call, <double> batch * 4 * hidden_dim)
        step_dz = &dz[slot * batch, 0]
        for b in range(batch):
            cell_backward(
                table, hidden_dim, &gates[t, b, 0], &C[t, b, 0], &C[t + 1, b, 0], &dh[b, 0], &dC[b, 0],
                step_dz + b * ld_dz,
            )
        if t > 0 or want_dh0:
            start = &dH[0, t - 1, 0] if every_step and t > 0 else NULL
            multiply(
                call, table, batch, hidden_dim, 4 * hidden_dim, step_dz, ld_dz, &packed_h[0],
                start, dH.shape[1] * hidden_dim, &dh[0, 0], hidden_dim,
            )
        if want_dX:
            multiply(
                call, table, batch, input_dim, 4 * hidden_dim, step_dz, ld_dz, &packed_x[0],
                <const real *> NULL, 0, &dX[0, t, 0], dX.shape[1] * input_dim,
            )
        slot += 1
        if slot == slots or t == 0:
            weight_gradient(
                call, table, slot * batch, batch, 4 * hidden_dim, &dz[0, 0], ld_dz, K, hx, t + slot - 1,
                flushed, dW, db, &panels[0],
            )
            flushed = True
            slot = 0
    return 0


def packed_sizes(int isa, Py_ssize_t input_dim, Py_ssize_t hidden_dim, Py_ssize_t output_dim, dtype) -> dict:
    """Return the number of elements of every packed array for an instruction set."""
    cdef const kernels *table = table_at(isa)
    cdef Py_ssize_t V = table.f32.lanes if dtype == "float32" else table.f64.lanes
    blocks = tiles(hidden_dim, V)
    return {
        "cell": blocks * (1 + input_dim + hidden_dim) * TILE_VECTORS * V,
        "h": panels_size(4 * hidden_dim, hidden_dim, V),
        "x": panels_size(4 * hidden_dim, input_dim, V),
        "head": panels_size(hidden_dim, output_dim, V),
        "head_backward": panels_size(output_dim, hidden_dim, V),
        "panels": panels_size(OUTER_ROWS, input_dim + hidden_dim, V),
        "slack": TILE_VECTORS * V,
    }


def pack_cell_weights(int isa, const real[:, ::1] W, const real[:, ::1] b, real[::1] packed):
    """Pack W (4H, H + I) and b (4H, 1) for `forward` and `step`."""
    cdef Py_ssize_t hidden_dim = W.shape[0] // 4
    with nogil:
        pack_cell(table_at(isa), W.shape[1] - hidden_dim, hidden_dim, &W[0, 0], &b[0, 0], &packed[0])


def forward(
    int isa, Py_ssize_t steps, const real[:, ::1] rows, const Py_ssize_t[::1] first, const real[::1] packed,
    real[:, :, ::1] hx, real[:, :, ::1] C, real[:, :, ::1] gates, real[:, :, ::1] H,
):
    """Run `sequence_forward`."""
    cdef Call call
    with nogil:
        begin(&call)
        try:
            sequence_forward(&call, table_at(isa), steps, rows, first, packed, hx, C, gates, H)
        finally:
            end(&call)


def backward(
    int isa, Py_ssize_t steps, Py_ssize_t batch, const real[:, ::1] W, const real[:, :, ::1] hx,
    const real[:, :, ::1] C, const real[:, :, ::1] gates, const real[:, :, ::1] dH, real[:, ::1] dh, real[:, ::1] dC,
    real[:, :, ::1] dX, real[:, ::1] dW, real[:, ::1] db, real[::1] packed_h, real[::1] packed_x, real[:, ::1] dz,
    real[::1] panels,
):
    """Pack the weights and run `sequence_backward`. W, dW (4H, H + I), db (4H, 1); dh comes back as dL/dh_0."""
    cdef Call call
    cdef const kernels *table = table_at(isa)
    cdef Py_ssize_t hidden_dim = C.shape[2], K = W.shape[1]
    with nogil:
        begin(&call)
        try:
            pack_panels(table, 4 * hidden_dim, hidden_dim, &W[0, 0], K, 1, &packed_h[0])
            if packed_x.shape[0] > 0:
                pack_panels(table, 4 * hidden_dim, K - hidden_dim, &W[0, hidden_dim], K, 1, &packed_x[0])
            sequence_backward(
                &call, table, steps, batch, K - hidden_dim, hx, C, gates, packed_h, packed_x, dH, True, dh, dC, dX,
                &dW[0, 0], &db[0, 0], dz, panels,
            )
        finally:
            end(&call)


cdef struct Inference:
    # A network's sizes, how many sequences run side by side, and where the parts of one scratch array begin: the packed
    # cell, the packed head, the head's bias, two slots of rows [h | x] that are `ld` apart, and C.
    Py_ssize_t input_dim, hidden_dim, output_dim, batch, head, b_y, hx, ld, C, size


cdef int lay_out(int isa, tuple sizes, Py_ssize_t batch, Py_ssize_t itemsize, Inference *at) except -1:
    """Every part begins on a cache line if the first does; a row has an odd number of them, so that no stack of rows
    falls into one set of the cache.
    """
    cdef const kernels *table = table_at(isa)
    cdef Py_ssize_t V = table.f32.lanes if itemsize == sizeof(float) else table.f64.lanes, line = 64 // itemsize, K
    at.input_dim, at.hidden_dim, at.output_dim = sizes
    at.batch = batch
    K = at.input_dim + at.hidden_dim
    at.head = tiles(at.hidden_dim, V) * (1 + K) * TILE_VECTORS * V
    at.b_y = at.head + tiles(panels_size(at.hidden_dim, at.output_dim, V), line) * line
    at.hx = at.b_y + tiles(at.output_dim, line) * line
    at.ld = (tiles(K, line) | 1) * line
    at.C = at.hx + 2 * batch * at.ld
    at.size = at.C + batch * at.hidden_dim + line  # one line more, to begin on one
    return 0


cdef inline void *first_line(void *scratch) noexcept nogil:
    """The first cache line's beginning at or after an address."""
    return <char *> scratch + (-<Py_ssize_t> scratch & 63)


cdef void pack_network(
    const kernels *table, const Inference *at, const real *parameters, real *packed,
) noexcept nogil:
    """Pack the network's flat vector: cell, head, and the head's bias as it is."""
    cdef const real *b = parameters + 4 * at.hidden_dim * (at.hidden_dim + at.input_dim)
    cdef const real *W_y = b + 4 * at.hidden_dim
    pack_cell(table, at.input_dim, at.hidden_dim, parameters, b, packed)
    pack_panels(table, at.hidden_dim, at.output_dim, W_y, 1, at.hidden_dim, packed + at.head)
    memcpy(packed + at.b_y, W_y + at.output_dim * at.hidden_dim, at.output_dim * sizeof(real))


cdef int advance(
    Call *call, const kernels *table, const Inference *at, const real *packed, Py_ssize_t batch, real *now, real *then,
    real *C, const real *x, Py_ssize_t ld_x, real *y, Py_ssize_t ld_y,
) except -1 nogil:
    """One step of B sequences, from the slot `now` to `then`: x (B, I) rows ld_x apart, y (B, O) out, rows ld_y apart,
    or NULL.
    """
    cdef Py_ssize_t b
    for b in range(batch):
        memcpy(now + b * at.ld + at.hidden_dim, x + b * ld_x, at.input_dim * sizeof(real))
    step_forward(
        call, table, batch, at.input_dim, at.hidden_dim, packed, <const real *> now, at.ld, <const real *> C, C, then,
        <real *> NULL,
    )
    if y != NULL:
        multiply(
            call, table, batch, at.output_dim, at.hidden_dim, <const real *> then, at.ld, packed + at.head,
            packed + at.b_y, 0, y, ld_y,
        )
    return 0


cdef inline Py_ssize_t start_of(const Py_ssize_t *offsets, Py_ssize_t length, Py_ssize_t n) noexcept nogil:
    """Where sequence n begins: by the table of offsets, or by the length that all have."""
    return offsets[n] if offsets != NULL else n * length


cdef int run_sequences(
    Call *call, const kernels *table, const Inference *at, const real *packed, real *hx, Py_ssize_t first,
    Py_ssize_t last, const real *rows, const Py_ssize_t *offsets, Py_ssize_t length, bint every_step, real *Y,
) except -1 nogil:
    """Run sequences `first` to `last - 1` from zero states. Neighbours of one length run side by side.

    packed  from `pack_network`
    hx      scratch for the states, from at.hx to at.size
    rows    (sum T, I); sequence n begins at start_of(offsets, length, n)
    Y       (sum T, O) if every_step, else (N, O); out
    """
    cdef real *C = hx + at.C - at.hx
    cdef real *now
    cdef real *then
    cdef real *y
    cdef Py_ssize_t n = first, start, steps, batch, ld_y, b, t
    while n < last:
        start = start_of(offsets, length, n)
        steps = start_of(offsets, length, n + 1) - start
        batch = 1
        for b in range(1, min(at.batch, last - n)):
            if start_of(offsets, length, n + b + 1) != start + (b + 1) * steps:
                break
            batch += 1
        ld_y = steps * at.output_dim if every_step else at.output_dim
        y = Y + (start if every_step else n) * at.output_dim
        now, then = hx + at.batch * at.ld, hx
        memset(C, 0, batch * at.hidden_dim * sizeof(real))
        for b in range(batch):
            memset(then + b * at.ld, 0, at.hidden_dim * sizeof(real))
        for t in range(steps):
            now, then = then, now
            advance(
                call, table, at, packed, batch, now, then, C, rows + (start + t) * at.input_dim, steps * at.input_dim,
                y if every_step or t == steps - 1 else NULL, ld_y,
            )
            if every_step:
                y += at.output_dim
        n += batch
    return 0


cdef int run_network(
    const kernels *table, const Inference *at, const real *parameters, real *scratch, Py_ssize_t N, const real *rows,
    const Py_ssize_t *offsets, Py_ssize_t length, bint every_step, real *Y,
) except -1 nogil:
    """Pack the weights and run N sequences; arguments as for `run_sequences`."""
    cdef Call call
    begin(&call)
    try:
        pack_network(table, at, parameters, scratch)
        run_sequences(
            &call, table, at, <const real *> scratch, scratch + at.hx, 0, N, rows, offsets, length, every_step, Y,
        )
    finally:
        end(&call)
    return 0


def infer(
    int isa, Py_ssize_t batch_size, tuple sizes, parameters, rows, const Py_ssize_t[::1] offsets, bint every_step,
):
    """Run N sequences from zero states and return their outputs; None if `rows` cannot be taken as it is.

    batch_size  the most sequences that run side by side
    parameters  the flat vector of a network of `sizes`
    rows        (N, T, I), or (sum T, I) with `offsets`: sequence n is rows[offsets[n]:offsets[n + 1]]; a finite
                C-contiguous array of the parameters' dtype
    returned    (N, O); or of every step (N, T, O), or (sum T, O) with `offsets`
    """
    cdef Py_buffer weights, X
    cdef Py_ssize_t shape[3]
    cdef bint ragged = offsets is not None, finite
    cdef int ndim = 2 if ragged else 3
    cdef Inference at
    get_buffer(parameters, &weights)
    if not get_array(rows, &X, weights.itemsize, ndim, shape):
        return None
    with nogil:
        finite = all_finite(&X)
    cdef Py_ssize_t N = offsets.shape[0] - 1 if ragged else shape[0], length = 0 if ragged else shape[1]
    cdef const Py_ssize_t *starts = &offsets[0] if ragged else NULL
    lay_out(isa, sizes, min(N, batch_size), weights.itemsize, &at)
    if shape[ndim - 1] != at.input_dim or X.len == 0 or not finite:
        return None
    Y = empty((*rows.shape[:ndim - 1], at.output_dim) if every_step else (N, at.output_dim), parameters.dtype)
    scratch = empty(at.size, parameters.dtype)
    cdef const kernels *table = table_at(isa)
    cdef void *y = first_byte(Y)
    cdef void *work = first_line(first_byte(scratch))
    with nogil:
        if weights.itemsize == sizeof(float):
            run_network[float](
                table, &at, <const float *> weights.buf, <float *> work, N, <const float *> X.buf, starts, length,
                every_step, <float *> y,
            )
        else:
            run_network[double](
                table, &at, <const double *> weights.buf, <double *> work, N, <const double *> X.buf, starts, length,
                every_step, <double *> y,
            )
    return Y


cdef int advance_streams(
    const kernels *table, const Inference *at, bint odd, real *packed, const real *x, real *y,
) except -1 nogil:
    """A step of B streams, an even or an odd one; x (B, I), y (B, O) out."""
    cdef real *now = packed + at.hx + odd * at.batch * at.ld
    cdef real *then = packed + at.hx + (not odd) * at.batch * at.ld
    cdef Call call
    begin(&call)
    try:
        advance(
            &call, table, at, <const real *> packed, at.batch, now, then, packed + at.C, x, at.input_dim, y,
            at.output_dim,
        )
    finally:
        end(&call)
    return 0


@cython.auto_pickle(False)
cdef class Streams:
    """The packed weights and the states of B streams, in one scratch array."""

    cdef readonly tuple sizes
    cdef readonly Py_ssize_t batch, steps
    cdef readonly object dtype, scratch
    cdef Py_ssize_t itemsize
    cdef tuple shape
    cdef const kernels *table
    cdef Inference at
    cdef void *packed

    def __init__(self, int isa, tuple sizes, Py_ssize_t batch, parameters):
        cdef Py_buffer weights
        get_buffer(parameters, &weights)
        lay_out(isa, sizes, batch, weights.itemsize, &self.at)
        self.sizes, self.batch, self.dtype, self.shape = sizes, batch, parameters.dtype, (batch, self.at.output_dim)
        self.table, self.itemsize, self.scratch = table_at(isa), weights.itemsize, zeros(self.at.size, self.dtype)
        self.packed = first_line(first_byte(self.scratch))
        if self.itemsize == sizeof(float):
            pack_network[float](self.table, &self.at, <const float *> weights.buf, <float *> self.packed)
        else:
            pack_network[double](self.table, &self.at, <const double *> weights.buf, <double *> self.packed)

    def advance(self, x, y):
        """Run one step on x (B, I), write the outputs to y (B, O), a new array if it is None, and return it.

        Nothing is done and None returned if x or y cannot be taken as they are: x finite, y writable and apart from x.
        """
        cdef Py_buffer X, Y
        if not self.get_rows(x, &X, self.at.input_dim) or not all_finite(&X):
            return None
        if y is None:
            y = empty(self.shape, self.dtype)
        if not self.get_rows(y, &Y, self.at.output_dim, PyBUF_WRITABLE):
            return None
        if <char *> X.buf < <char *> Y.buf + Y.len and <char *> Y.buf < <char *> X.buf + X.len:
            return None
        with nogil:
            if self.itemsize == sizeof(float):
                advance_streams[float](
                    self.table, &self.at, self.steps % 2, <float *> self.packed, <const float *> X.buf, <float *> Y.buf,
                )
            else:
                advance_streams[double](
                    self.table, &self.at, self.steps % 2, <double *> self.packed, <const double *> X.buf,
                    <double *> Y.buf,
                )
        self.steps += 1
        return y

    def state(self) -> tuple[int, int, int]:
        """Return the elements of scratch at which h and C begin, and those between two rows of h."""
        cdef Py_ssize_t first = (<char *> self.packed - <char *> first_byte(self.scratch)) // self.itemsize
        return first + self.at.hx + self.steps % 2 * self.batch * self.at.ld, first + self.at.C, self.at.ld

    cdef bint get_rows(self, object array, Py_buffer *view, Py_ssize_t columns, int flags=0) except -1:
        """Get an array's buffer if it is (B, columns) and of our type."""
        cdef Py_ssize_t shape[2]
        return (
            get_array(array, view, self.itemsize, 2, shape, flags) and shape[0] == self.batch and shape[1] == columns
        )


cdef int get_buffer(object array, Py_buffer *view) except -1:
    """Get the buffer of an array that we hold, and that therefore keeps its memory."""
    PyObject_GetBuffer(array, view, PyBUF_C_CONTIGUOUS)
    PyBuffer_Release(view)
    return 0


cdef void *first_byte(object array) except NULL:
    cdef Py_buffer view
    get_buffer(array, &view)
    return view.buf


cdef bint get_array(
    object array, Py_buffer *view, Py_ssize_t itemsize, int ndim, Py_ssize_t *shape, int flags=0,
) except -1:
    """Get an array's buffer and shape if it is a C-contiguous ndarray of floats of this size, with so many axes."""
    cdef char code = c"f" if itemsize == sizeof(float) else c"d"
    if type(array) is not ndarray:
        return False
    try:
        PyObject_GetBuffer(array, view, flags | PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)
    except (BufferError, TypeError, ValueError):
        return False
    cdef bint fits = view.ndim == ndim and view.format[0] == code and view.format[1] == 0
    if fits:
        memcpy(shape, view.shape, ndim * sizeof(Py_ssize_t))
    PyBuffer_Release(view)
    return fits
