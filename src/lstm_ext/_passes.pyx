"""The passes of one LSTM layer on arrays that the caller owns: packing, forward, backward, weight gradient.

Design
------
- Time runs outside, blocks of units and tiles of rows inside; a tile is one call of a leaf kernel (kernels.h).
- ``hx`` (slots, B, ld) holds the rows [h_{t-1} (H) | x_t (I)] of step t: the very operand of W. Step t writes h_t to
  the next slot, so t = 0 is no special case. T + 1 slots keep everything for the backward pass; two slots alternate.
- Where few units would leave lanes empty, groups of V sequences run with one sequence in each lane (``lanes_rows``).
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

from lstm_ext._kernels cimport (
    LANES_BYTES, TILE_VECTORS, all_finite, cell_backward, cell_forward, denormals_flush, denormals_restore, kernels,
    lanes, lanes_backward, lanes_forward, matmul, outer, real, table_at, tile_rows, wall_seconds, zeros_f32, zeros_f64,
)

# The block of dy that one pass of a weight gradient works on. A sum goes on from the stored partial result, so the
# numbers change no bit.
cdef enum:
    OUTER_ROWS = 256
    OUTER_COLUMNS = 192
    LANES_STEPS = 256  # of one call of lanes_forward: signals are checked in between


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
    Py_ssize_t lda, const real *panels, Py_ssize_t ld_panel, bint accumulate, real *C, Py_ssize_t ldc,
) except -1 nogil:
    """C = (C or 0) + A^T B: A (depth, rows), B (depth, columns) packed as by `pack_panels`, or one panel with rows
    ld_panel apart if that is not 0.
    """
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
                table, min(tile, rows - r), count, depth, A + r, lda, panels, ld_panel if ld_panel > 0 else width,
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
    cdef Py_ssize_t V = lanes(table, dy), depth, start = 0, first, b, j, width = panel_width(columns, V)
    cdef real one = 1
    cdef const real *part
    # Rows of hx serve as a panel where copying them costs more than one call of `outer` for each tile and step.
    cdef bint direct = columns <= width <= hx.shape[2] and 4 * tiles(outputs, tile_rows(table, dy)) <= batch
    while start < n:
        part = dy + start * ld_dy
        b = start % batch
        depth = min(min(<Py_ssize_t> OUTER_ROWS, batch - b) if direct else <Py_ssize_t> OUTER_ROWS, n - start)
        if not direct:
            pack_rows(table, depth, batch, columns, hx, t - start // batch, b, panels)
        for j in range(tiles(outputs, OUTER_COLUMNS)):
            first = j * OUTER_COLUMNS
            outer_product(
                call, table, min(OUTER_COLUMNS, outputs - first), columns, depth, part + first, ld_dy,
                <const real *> &hx[t - start // batch, b, 0] if direct else panels, hx.shape[2] if direct else 0,
                accumulate, dW + first * columns, columns,
            )
        for j in range(tiles(outputs, TILE_VECTORS * V)):
            first = j * TILE_VECTORS * V
            outer(
                table, 1, min(TILE_VECTORS * V, outputs - first), depth, &one, 0, part + first, ld_dy,
                start_of_sum(<const real *> (db + first), accumulate), 0, db + first, 0,
            )
        accumulate = True
        start += depth
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


cdef Py_ssize_t lanes_rows(
    const kernels *table, Py_ssize_t batch, Py_ssize_t input_dim, Py_ssize_t hidden_dim, bint keep, const real *tag,
) noexcept nogil:
    """How many sequences, the first of a batch, run with the batch in the lanes: whole groups of V, or all.

    A group of n sequences costs H vectors of work, and an eighth more if its gates are kept for a backward pass, which
    turns dz into rows; with the units in the lanes it costs n ceil(H / V). It reads all weights again at each step, so
    they must fit into a part of the second-level cache.
    """
    cdef Py_ssize_t V = lanes(table, tag), blocks = tiles(hidden_dim, V), rest = batch % V
    cdef Py_ssize_t bytes = blocks * (1 + input_dim + hidden_dim) * TILE_VECTORS * V * <Py_ssize_t> sizeof(real)
    cdef Py_ssize_t cost = hidden_dim + hidden_dim // 8 if keep else hidden_dim
    if bytes > LANES_BYTES or cost > V * blocks:
        return 0
    return batch if cost <= rest * blocks else batch - rest


cdef int forward_lanes(
    Call *call, const kernels *table, Py_ssize_t t0, Py_ssize_t t1, Py_ssize_t b0, Py_ssize_t b1,
    const real[:, ::1] rows, const Py_ssize_t[::1] first, const real[::1] packed, real[:, :, ::1] hx,
    real[:, :, ::1] C, real[:, :, ::1] gates, real[:, :, ::1] H,
) except -1 nogil:
    """Steps t0 to t1 of sequences b0 to b1 by lanes_forward; b0 is a multiple of V, b1 another or `lanes_rows`.

    As sequence_forward, but for each group of n <= V sequences, from b on, C[t, b:b + n] is an array (H, n), and
    gates[t, b:b + n] an array (H, 4, n).
    """
    cdef Py_ssize_t V = lanes(table, &packed[0]), input_dim = rows.shape[1], hidden_dim = C.shape[2]
    cdef Py_ssize_t step_of_C = C.shape[1] * hidden_dim if C.shape[0] > 1 else 0, group, b, n
    cdef Py_ssize_t t, count, now, then, row, s
    cdef bint keep = gates.shape[0] > 0, want_H = H.shape[0] > 0, keep_h = hx.shape[0] > t1
    cdef Py_ssize_t most = 1 if want_H and not keep_h else LANES_STEPS
    for group in range(tiles(b1 - b0, V)):
        b = b0 + group * V
        n = min(V, b1 - b)
        t = t0
        while t < t1:
            count = min(most, t1 - t)
            check_signals(call, 4. * V * hidden_dim * (input_dim + hidden_dim) * count)
            now, then = t % hx.shape[0], (t + count) % hx.shape[0]
            lanes_forward(
                table, count, n, input_dim, hidden_dim, &rows[0, 0] + t * input_dim, &first[b], &packed[0],
                <const real *> &hx[now, b, 0], &hx[then, b, 0], hx.shape[2], &hx[now, b, 0] if keep_h else NULL,
                hx.shape[1] * hx.shape[2], &C[t % C.shape[0], b, 0], step_of_C, &gates[t, b, 0] if keep else NULL,
            )
            if want_H:
                for row in range(b, b + n):
                    for s in range(t, t + count):
                        memcpy(
                            &H[row, s, 0], &hx[(s + 1) % hx.shape[0], row, 0], hidden_dim * sizeof(real),
                        )
            t += count
    return 0


cdef int backward_lanes(
    Call *call, const kernels *table, Py_ssize_t steps, Py_ssize_t t0, Py_ssize_t t1, Py_ssize_t b0,
    Py_ssize_t b1, Py_ssize_t batch, const real[:, :, ::1] C, const real[:, :, ::1] gates,
    const real[::1] packed_h, const real[:, :, ::1] dH, real[:, ::1] dh, real[:, ::1] dC, real[:, ::1] dz,
) except -1 nogil:
    """Steps t1 to t0 of T backward, of sequences b0 to b1 that forward_lanes ran; dz of step t goes to slot t1 - 1 - t.

    Between two calls dh[b:b + n] and dC[b:b + n] of a group are arrays (H, n).
    """
    cdef Py_ssize_t V = lanes(table, &packed_h[0]), hidden_dim = C.shape[2], group, b
    for group in range(tiles(b1 - b0, V)):
        b = b0 + group * V
        check_signals(call, 4. * V * hidden_dim * hidden_dim * (t1 - t0))
        lanes_backward(
            table, t1 - t0, min(V, b1 - b), hidden_dim, &gates[t0, b, 0], &C[t0, b, 0], C.shape[1] * hidden_dim,
            &packed_h[0], &dH[b, t0, 0] if dH.shape[0] > 0 else NULL, dH.shape[1] * hidden_dim, t0 == 0,
            t1 == steps, &dh[b, 0], &dC[b, 0], &dz[b, 0], dz.shape[1], batch * dz.shape[1],
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
                              C and gates of the first `lanes_rows` sequences are laid out as forward_lanes says
    H      (B, T, H)          out: every h_t; not wanted if it is empty
    """
    cdef Py_ssize_t batch = first.shape[0], input_dim = rows.shape[1], hidden_dim = C.shape[2], t, b, now, then
    cdef bint keep = gates.shape[0] > 0, want_H = H.shape[0] > 0
    cdef Py_ssize_t start = lanes_rows(table, batch, input_dim, hidden_dim, keep, &packed[0])
    forward_lanes(call, table, 0, steps, 0, start, rows, first, packed, hx, C, gates, H)
    if start == batch:
        return 0
    for t in range(steps):
        now, then = t % hx.shape[0], (t + 1) % hx.shape[0]
        for b in range(start, batch):
            memcpy(&hx[now, b, hidden_dim], &rows[first[b] + t, 0], input_dim * sizeof(real))
        step_forward(
            call, table, batch - start, input_dim, hidden_dim, &packed[0], &hx[now, start, 0], hx.shape[2],
            &C[t % C.shape[0], start, 0], &C[(t + 1) % C.shape[0], start, 0], &hx[then, start, 0],
            &gates[t, start, 0] if keep else NULL,
        )
        if want_H:
            for b in range(start, batch):
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
    cdef Py_ssize_t first = lanes_rows(table, batch, input_dim, hidden_dim, True, &packed_h[0])
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
        if slot == 0:
            backward_lanes(
                call, table, steps, max(0, t + 1 - slots), t + 1, 0, first, batch, C, gates, packed_h, dH, dh, dC, dz,
            )
        for b in range(first, batch):
            cell_backward(
                table, hidden_dim, &gates[t, b, 0], &C[t, b, 0], &C[t + 1, b, 0], &dh[b, 0], &dC[b, 0],
                step_dz + b * ld_dz,
            )
        if first < batch and (t > 0 or want_dh0):
            start = &dH[first, t - 1, 0] if every_step and t > 0 else NULL
            multiply(
                call, table, batch - first, hidden_dim, 4 * hidden_dim, step_dz + first * ld_dz, ld_dz, &packed_h[0],
                start, dH.shape[1] * hidden_dim, &dh[first, 0], hidden_dim,
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


cdef void copy_states(
    const kernels *table, Py_ssize_t batch, Py_ssize_t start, Py_ssize_t hidden_dim, real *states, real *C, bint load,
) noexcept nogil:
    """Copy rows (B, H) to a slot of C, or from it unless `load`: the first `start` sequences as forward_lanes says."""
    cdef Py_ssize_t V = lanes(table, C), b, lane, n, u
    cdef real *row
    cdef real *kept
    for b in range(batch):
        lane = b % V
        n = min(V, start - (b - lane))
        for u in range(hidden_dim):
            row = states + b * hidden_dim + u
            kept = C + (b - lane) * hidden_dim + u * n + lane if b < start else C + b * hidden_dim + u
            if load:
                kept[0] = row[0]
            else:
                row[0] = kept[0]


def forward(
    int isa, Py_ssize_t steps, const real[:, ::1] rows, const Py_ssize_t[::1] first, const real[::1] packed,
    real[:, :, ::1] hx, real[:, :, ::1] C, real[:, :, ::1] gates, real[:, :, ::1] H, real[:, ::1] states,
):
    """Run `sequence_forward`; states (B, H) holds C_0, and then C_T."""
    cdef Call call
    cdef const kernels *table = table_at(isa)
    cdef Py_ssize_t batch = first.shape[0], hidden_dim = C.shape[2]
    cdef Py_ssize_t start = lanes_rows(table, batch, rows.shape[1], hidden_dim, gates.shape[0] > 0, &packed[0])
    with nogil:
        begin(&call)
        try:
            copy_states(table, batch, start, hidden_dim, &states[0, 0], &C[0, 0, 0], True)
            sequence_forward(&call, table, steps, rows, first, packed, hx, C, gates, H)
            copy_states(table, batch, start, hidden_dim, &states[0, 0], &C[steps % C.shape[0], 0, 0], False)
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
    # Where the parts of one scratch array begin: the packed weights, two slots of rows [h | x], and C.
    Py_ssize_t head, hx, ld, C, b_y, size


cdef Inference lay_out(
    const kernels *table, Py_ssize_t input_dim, Py_ssize_t hidden_dim, Py_ssize_t output_dim, Py_ssize_t batch,
    const real *tag,
) noexcept nogil:
    """Every part begins on a cache line if the first does; a row has an odd number of them, so that no stack of rows
    falls into one set of the cache.
    """
    cdef Py_ssize_t V = lanes(table, tag), line = 64 // sizeof(real), K = input_dim + hidden_dim
    cdef Inference at
    at.head = tiles(hidden_dim, V) * (1 + K) * TILE_VECTORS * V
    at.hx = at.head + tiles(panels_size(hidden_dim, output_dim, V), line) * line
    at.ld = (tiles(K, line) | 1) * line
    at.C = at.hx + 2 * batch * at.ld
    at.b_y = at.C + batch * hidden_dim
    at.size = at.b_y + output_dim + line  # one line more, to begin on one
    return at


cdef void pack_network(
    const kernels *table, Py_ssize_t input_dim, Py_ssize_t hidden_dim, Py_ssize_t output_dim, const real *parameters,
    const Inference *at, real *packed,
) noexcept nogil:
    """Pack the network's flat vector: cell, head, and the head's bias as it is."""
    cdef const real *bias = parameters + 4 * hidden_dim * (hidden_dim + input_dim)
    cdef const real *W_y = bias + 4 * hidden_dim
    pack_cell(table, input_dim, hidden_dim, parameters, bias, packed)
    pack_panels(table, hidden_dim, output_dim, W_y, 1, hidden_dim, packed + at.head)
    memcpy(packed + at.b_y, W_y + output_dim * hidden_dim, output_dim * sizeof(real))


cdef inline real *first_line(real *scratch) noexcept nogil:
    """The first cache line's beginning at or after an address."""
    return scratch + (-<Py_ssize_t> scratch & 63) // <Py_ssize_t> sizeof(real)


def inference_size(
    int isa, Py_ssize_t input_dim, Py_ssize_t hidden_dim, Py_ssize_t output_dim, Py_ssize_t batch, Py_ssize_t itemsize,
) -> int:
    """Return the elements of scratch that `infer` needs for so many sequences side by side."""
    if itemsize == sizeof(float):
        return lay_out[float](table_at(isa), input_dim, hidden_dim, output_dim, batch, zeros_f32).size
    return lay_out[double](table_at(isa), input_dim, hidden_dim, output_dim, batch, zeros_f64).size


cdef int infer_lanes(
    Call *call, const kernels *table, Py_ssize_t t0, Py_ssize_t t1, Py_ssize_t batch, Py_ssize_t hidden_dim,
    const real[:, ::1] rows, const Py_ssize_t[::1] first, const real *packed, const real *h_prev, real *h,
    Py_ssize_t ld_h, real *C,
) except -1 nogil:
    """Steps t0 to t1 of some sequences by lanes_forward, keeping the last h and C alone."""
    cdef Py_ssize_t V = lanes(table, packed), input_dim = rows.shape[1], group, b, n, t, count
    for group in range(tiles(batch, V)):
        b = group * V
        n = min(V, batch - b)
        t = t0
        while t < t1:
            count = min(<Py_ssize_t> LANES_STEPS, t1 - t)
            check_signals(call, 4. * V * hidden_dim * (input_dim + hidden_dim) * count)
            lanes_forward(
                table, count, n, input_dim, hidden_dim, &rows[0, 0] + t * input_dim, &first[b], packed,
                (h_prev if t == t0 else h) + b * ld_h, h + b * ld_h, ld_h, <real *> NULL, 0, C + b * hidden_dim, 0,
                <real *> NULL,
            )
            t += count
    return 0


def infer(
    int isa, Py_ssize_t batch_size, Py_ssize_t hidden_dim, const real[::1] parameters, const real[:, ::1] rows,
    const Py_ssize_t[::1] offsets, bint every_step, real[::1] scratch, real[:, ::1] Y,
):
    """Run N sequences from zero states and keep nothing but their outputs.

    parameters  the network's flat vector
    rows        (sum T, I); sequence n is rows[offsets[n]:offsets[n + 1]]. Neighbours of one length run side by side,
                up to `batch_size` of them
    scratch     from `inference_size`
    Y           (sum T, O) if every_step, else (N, O); out
    """
    cdef const kernels *table = table_at(isa)
    cdef Py_ssize_t N = offsets.shape[0] - 1, input_dim = rows.shape[1], output_dim = Y.shape[1], n = 0, b, t
    cdef Py_ssize_t batch, steps, start
    cdef Inference at = lay_out(table, input_dim, hidden_dim, output_dim, batch_size, &parameters[0])
    cdef real *packed = first_line(&scratch[0])
    cdef const real *b_y = packed + at.b_y
    cdef real *C = packed + at.C
    cdef real *now
    cdef real *then
    cdef Call call
    with nogil:
        begin(&call)
        try:
            pack_network(table, input_dim, hidden_dim, output_dim, &parameters[0], &at, packed)
            while n < N:
                steps = offsets[n + 1] - offsets[n]
                batch = 1
                while batch < batch_size and n + batch < N and offsets[n + batch + 1] - offsets[n + batch] == steps:
                    batch += 1
                start = lanes_rows(table, batch, input_dim, hidden_dim, False, &parameters[0])
                then = packed + at.hx
                now = then + batch_size * at.ld
                memset(C, 0, batch * hidden_dim * sizeof(real))
                for b in range(batch):
                    memset(then + b * at.ld, 0, hidden_dim * sizeof(real))
                if not every_step:
                    infer_lanes(
                        &call, table, 0, steps, start, hidden_dim, rows, offsets[n:], <const real *> packed,
                        <const real *> then, now if steps % 2 == 1 else then, at.ld, C,
                    )
                for t in range(steps):
                    now, then = then, now
                    if every_step:
                        infer_lanes(
                            &call, table, t, t + 1, start, hidden_dim, rows, offsets[n:], <const real *> packed,
                            <const real *> now, then, at.ld, C,
                        )
                    if start < batch:
                        for b in range(start, batch):
                            memcpy(
                                now + b * at.ld + hidden_dim, &rows[offsets[n + b] + t, 0], input_dim * sizeof(real),
                            )
                        step_forward(
                            &call, table, batch - start, input_dim, hidden_dim, <const real *> packed,
                            <const real *> (now + start * at.ld), at.ld, <const real *> (C + start * hidden_dim),
                            C + start * hidden_dim, then + start * at.ld, <real *> NULL,
                        )
                    if every_step:
                        multiply(
                            &call, table, batch, output_dim, hidden_dim, <const real *> then, at.ld,
                            <const real *> (packed + at.head), b_y, 0, &Y[offsets[n] + t, 0], steps * output_dim,
                        )
                if not every_step:
                    multiply(
                        &call, table, batch, output_dim, hidden_dim, <const real *> then, at.ld,
                        <const real *> (packed + at.head), b_y, 0, &Y[n, 0], output_dim,
                    )
                n += batch
        finally:
            end(&call)


cdef void *begin_streams(
    const kernels *table, Py_ssize_t hidden_dim, Py_ssize_t batch, const real[::1] parameters, real[::1] scratch,
    const Inference *at, Py_ssize_t input_dim, Py_ssize_t output_dim,
) noexcept:
    """Pack the weights, put the states to zero, and return where the scratch's first cache line begins."""
    cdef real *packed = first_line(&scratch[0])
    pack_network(table, input_dim, hidden_dim, output_dim, &parameters[0], at, packed)
    memset(packed + at.hx, 0, (at.b_y - at.hx) * sizeof(real))
    return packed


cdef int advance_streams(
    const kernels *table, Py_ssize_t t, Py_ssize_t batch, Py_ssize_t input_dim, Py_ssize_t hidden_dim,
    Py_ssize_t output_dim, real *packed, const Inference *at, const real *x, real *y,
) except -1 nogil:
    """Step t of B streams: x (B, I), y (B, O) out."""
    cdef real *now = packed + at.hx + t % 2 * batch * at.ld
    cdef real *then = packed + at.hx + (t + 1) % 2 * batch * at.ld
    cdef real *C = packed + at.C
    cdef Py_ssize_t b
    cdef Call call
    begin(&call)
    try:
        for b in range(batch):
            memcpy(now + b * at.ld + hidden_dim, x + b * input_dim, input_dim * sizeof(real))
        step_forward(
            &call, table, batch, input_dim, hidden_dim, <const real *> packed, <const real *> now, at.ld,
            <const real *> C, C, then, <real *> NULL,
        )
        multiply(
            &call, table, batch, output_dim, hidden_dim, <const real *> then, at.ld,
            <const real *> (packed + at.head), <const real *> (packed + at.b_y), 0, y, output_dim,
        )
    finally:
        end(&call)
    return 0


@cython.auto_pickle(False)
cdef class Streams:
    """The packed weights and the states of B streams, in one scratch array from `inference_size`."""

    cdef readonly tuple sizes
    cdef readonly Py_ssize_t batch, steps
    cdef readonly object scratch
    cdef Py_ssize_t input_dim, hidden_dim, output_dim, itemsize
    cdef const kernels *table
    cdef Inference at
    cdef void *packed

    def __init__(self, int isa, tuple sizes, Py_ssize_t batch, parameters, scratch):
        self.input_dim, self.hidden_dim, self.output_dim = self.sizes = sizes
        self.batch, self.scratch, self.itemsize, self.table = batch, scratch, scratch.itemsize, table_at(isa)
        if self.itemsize == sizeof(float):
            self.at = lay_out[float](
                self.table, self.input_dim, self.hidden_dim, self.output_dim, batch, zeros_f32,
            )
            self.packed = begin_streams[float](
                self.table, self.hidden_dim, batch, parameters, scratch, &self.at, self.input_dim, self.output_dim,
            )
        else:
            self.at = lay_out[double](
                self.table, self.input_dim, self.hidden_dim, self.output_dim, batch, zeros_f64,
            )
            self.packed = begin_streams[double](
                self.table, self.hidden_dim, batch, parameters, scratch, &self.at, self.input_dim, self.output_dim,
            )

    def advance(self, x, y) -> bool:
        """Write the outputs of one step to y (B, O); False, and nothing done, if x is not a finite array (B, I)."""
        cdef Py_buffer from_x, to_y
        if not self.get_rows(x, &from_x, self.input_dim, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT):
            return False
        try:
            if not all_finite(&from_x):
                return False
            if not self.get_rows(y, &to_y, self.output_dim, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE):
                raise ValueError("y is not as needed")
            try:
                self.run(from_x.buf, to_y.buf)
            finally:
                PyBuffer_Release(&to_y)
        finally:
            PyBuffer_Release(&from_x)
        self.steps += 1
        return True

    def state(self) -> tuple[int, int, int]:
        """Return the elements of scratch at which h and C begin, and those between two rows of h."""
        cdef Py_ssize_t first = (<char *> self.packed - <char *> first_byte(self.scratch)) // self.itemsize
        return first + self.at.hx + self.steps % 2 * self.batch * self.at.ld, first + self.at.C, self.at.ld

    cdef bint get_rows(self, object array, Py_buffer *view, Py_ssize_t columns, int flags) except -1:
        """Get an array's buffer if it is (B, columns) and of our type."""
        cdef char code = c"f" if self.itemsize == sizeof(float) else c"d"
        try:
            PyObject_GetBuffer(array, view, flags)
        except (BufferError, TypeError, ValueError):
            return False
        if (
            view.ndim == 2 and view.shape[0] == self.batch and view.shape[1] == columns
            and view.format[0] == code and view.format[1] == 0
        ):
            return True
        PyBuffer_Release(view)
        return False

    cdef int run(self, const void *x, void *y) except -1:
        with nogil:
            if self.itemsize == sizeof(float):
                advance_streams[float](
                    self.table, self.steps, self.batch, self.input_dim, self.hidden_dim, self.output_dim,
                    <float *> self.packed, &self.at, <const float *> x, <float *> y,
                )
            else:
                advance_streams[double](
                    self.table, self.steps, self.batch, self.input_dim, self.hidden_dim, self.output_dim,
                    <double *> self.packed, &self.at, <const double *> x, <double *> y,
                )
        return 0


cdef void *first_byte(object array) except NULL:
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_C_CONTIGUOUS)
    PyBuffer_Release(&view)
    return view.buf
