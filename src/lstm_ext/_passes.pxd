from libc.stdint cimport uint32_t

from lstm_ext._kernels cimport cell_options, kernels, real
from lstm_ext._products cimport StepRows
from lstm_ext._threads cimport Region


cdef struct Rows:
    # Row (b, t), of sequence b and step t, is at data + (first[b] + t * step_stride) * width; first[b] is
    # b * sequence_stride if `first` is NULL.
    void *data
    Py_ssize_t width, step_stride, sequence_stride
    const Py_ssize_t *first


cdef inline Rows no_rows() noexcept nogil:
    cdef Rows rows
    rows.data, rows.first, rows.width, rows.step_stride, rows.sequence_stride = NULL, NULL, 0, 0, 0
    return rows


cdef inline real *row_at(const Rows *rows, Py_ssize_t b, Py_ssize_t t, const real *tag) noexcept nogil:
    cdef Py_ssize_t first = rows.first[b] if rows.first != NULL else b * rows.sequence_stride
    return <real *> rows.data + (first + t * rows.step_stride) * rows.width


cdef struct Masks:
    # The counters of the masks of dropout (Philox): word j of row (n, t) has the counter (j / 4, n, t, stream).
    uint32_t key[2]
    const Py_ssize_t *mask_rows  # n of each sequence; NULL: its own number
    Py_ssize_t first_step  # t of the first step


cdef struct Drop:
    # One kind of dropout: values whose word is below `threshold` are dropped, the others scaled; 0: none is dropped.
    uint32_t threshold, stream
    double scale


cdef struct Cell:
    # One direction of one layer, and a batch of sequences sorted by length, the longest first.
    const kernels *table
    const cell_options *options  # NULL: the plain cell, fused in one kernel; only other cells have the fields below *
    Py_ssize_t steps, batch, input_dim, hidden_dim
    Py_ssize_t state_dim  # of h_t: hidden_dim, or the projection's
    Py_ssize_t gates  # 4, or 3
    const Py_ssize_t *lengths  # of each sequence; NULL: all have `steps`
    const Py_ssize_t *batch_sizes  # the number that have more than t steps; NULL: all
    Py_ssize_t origin, stop  # the steps whose activations the arrays hold; slot 0 belongs to `origin`
    Py_ssize_t by_lanes  # the number of sequences that run with the batch in the lanes: `lanes_rows`, or 0
    void *scratch  # of `lanes_scratch_size`, if by_lanes is not 0
    Masks masks
    Drop drop_x
    Rows x
    bint x_backwards  # step t reads x of a sequence's step T - 1 - t
    # (slots, >= B, ld) rows [h_{t-1} | x_t], h_{t-1} times h_mask if there is one; step t writes to the next slot
    void *hx
    Py_ssize_t slots, slot, ld
    void *h  # (slots, >= B, ld_h) h_{t-1} without the mask: hx, or an array of its own below *
    Py_ssize_t h_slot, ld_h
    void *C  # (C slots, >= B, H); one slot is updated in place
    Py_ssize_t C_slots, C_slot
    void *gate_values  # (steps, >= B, G H), or NULL; below *, one step if nothing is kept
    Py_ssize_t kept  # rows between two steps in the arrays (steps, >= B, ...); 0 if only one step is kept
    # *
    const void *h_mask  # (>= B, R), or NULL
    void *m  # (steps, >= B, H) rows that W_r projects, or NULL
    void *norm_x  # (steps, >= B, G H) W_x x normalised, or NULL; norm_h likewise
    void *norm_h
    double *deviations  # (steps, >= B, 2) 1 / their standard deviations
    void *zone  # (steps, >= B, R + H) masks of zoneout for h and C; NULL: its probabilities as constants, or none
    Drop zone_h, zone_C
    double zoneout_h


cdef struct Forward:
    # The forward pass of a cell: see `run_forward`.
    Cell cell
    Py_ssize_t begin, end, row_tasks, unit_tasks  # of the loop under way
    const void *packed  # by pack_cell
    const void *panels_x  # below *: W_x (I, G H) and W_h (R, G H), packed by pack_panels
    const void *panels_h
    const void *panels_r  # of W_r (H, R), or NULL
    const void *bias  # (G H), or NULL
    const void *gain_x  # (G H), with layer norm
    const void *gain_h
    Rows H  # out: every h_t; data NULL: not stored
    bint H_backwards  # step t writes h of a sequence's step T - 1 - t
    bint H_adds
    void *Y  # out: (B, T, O) outputs of every step, or NULL
    Py_ssize_t output_dim
    const void *packed_y
    const void *b_y


cdef struct Backward:
    # The backward pass of a cell: see `run_backward`.
    Cell cell
    Py_ssize_t begin, end, row_tasks  # of the loop under way, which runs its steps from the last
    Py_ssize_t row  # the row of dz at which the loop's last step begins
    const void *panels_h  # of W_h (G H, R), W_x (G H, I; NULL if dX is not wanted), W_r (R, H)
    const void *panels_x
    const void *panels_r
    Rows dH  # dL/dh_t that every step gets from outside; data NULL: none
    bint dH_backwards
    Rows dX  # out; data NULL: not wanted
    bint dX_adds
    bint want_dh0
    void *dh  # (>= B, R)  in: dL/dh_T without dH; out: dL/dh_0 if wanted
    void *dC  # (>= B, H)  in: dL/dC_T; out: dL/dC_0
    void *dz  # scratch (dz_rows, ld_dz) for whole steps, readable 4 V past the last
    Py_ssize_t ld_dz, dz_rows
    void *sums  # scratch of weight_gradient
    void *dW  # (G H, R + I), out
    void *db  # (G H), out, or NULL
    void *product  # scratch (>= B, max(R, I)) for products whose rows have no constant stride, see `is_uniform`
    # *
    const void *gain_x
    const void *gain_h
    void *dz_x  # scratch like dz, with layer norm, else dz itself; dz_h likewise
    void *dz_h
    void *dr  # scratch (dz_rows, ld_dr), ld_dr whole cache lines, with a projection
    Py_ssize_t ld_dr
    void *dm  # scratch (>= B, H) with a projection
    void *dW_r
    void *direct  # scratch (>= B, R) with zoneout: the part of dh that skips the cell
    void *c  # scratch (>= B, H)
    void *terms  # scratch (dz_rows, ld_terms): each row's terms of the gradients of peepholes, gains and shift; or NULL
    Py_ssize_t term_count, ld_terms
    void *dterms  # (term_count), out


cdef Py_ssize_t lanes_rows(
    const kernels *table, Py_ssize_t batch, Py_ssize_t input_dim, Py_ssize_t hidden_dim, bint keep, const real *tag,
) noexcept nogil

cdef Py_ssize_t lanes_scratch_size(
    const kernels *table, Py_ssize_t itemsize, Py_ssize_t batch, Py_ssize_t input_dim, Py_ssize_t hidden_dim, bint keep,
) noexcept nogil

cdef double shared_work(
    Py_ssize_t steps, Py_ssize_t batch, Py_ssize_t input_dim, Py_ssize_t hidden_dim, bint backward,
) noexcept nogil

cdef int run_forward(Region *region, Forward *f, const real *tag) except -1 nogil

cdef void mask_counter(
    const Cell *cell, const Drop *drop, Py_ssize_t b, Py_ssize_t t, uint32_t *counter,
) noexcept nogil

cdef void store_outputs(const Forward *f, Py_ssize_t t, Py_ssize_t b, Py_ssize_t b_end, const real *tag) noexcept nogil

cdef int apply_head(
    Region *region, const Forward *f, Py_ssize_t t, Py_ssize_t b, Py_ssize_t b_end, real *Y, Py_ssize_t ld,
) except -1 nogil

cdef int run_backward(Region *region, Backward *w, const real *tag) except -1 nogil

cdef void copy_states(
    const Cell *cell, Py_ssize_t t, Py_ssize_t b, real *state, bint load, const real *tag,
) noexcept nogil
