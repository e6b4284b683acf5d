from lstm_ext._kernels cimport kernels, real
from lstm_ext._threads cimport Call


cdef struct Forward:
    # A batch of sequences on its way through the steps: see `sequence_forward`.
    const kernels *table
    Py_ssize_t steps, batch, input_dim, hidden_dim, ld, slot, slots, C_slot, C_slots
    Py_ssize_t by_lanes  # the first so many sequences run with the batch in the lanes: `lanes_rows`, or 0
    Py_ssize_t begin, end, row_parts, unit_parts  # the loop under way
    const Py_ssize_t *first  # NULL: one sequence comes after the other
    const void *rows
    const void *packed
    void *hx
    void *C
    void *gates
    void *H  # what is kept of every step, or NULL: h, or outputs
    void *Y
    Py_ssize_t H_steps, output_dim
    const void *packed_y
    const void *b_y


cdef Py_ssize_t lanes_rows(
    const kernels *table, Py_ssize_t batch, Py_ssize_t input_dim, Py_ssize_t hidden_dim, bint keep, const real *tag,
) noexcept nogil

cdef double shared_work(
    Py_ssize_t steps, Py_ssize_t batch, Py_ssize_t input_dim, Py_ssize_t hidden_dim, bint backward,
) noexcept nogil

cdef int run_forward(Call *call, Forward *f, const real *tag) except -1 nogil

cdef int emit_outputs(
    Call *call, const Forward *f, Py_ssize_t t, Py_ssize_t b, Py_ssize_t b_end, real *Y, Py_ssize_t ld,
) except -1 nogil

cdef int sequence_forward(
    Call *call, const kernels *table, Py_ssize_t steps, const real[:, ::1] rows, const Py_ssize_t[::1] first,
    const real[::1] packed, real[:, :, ::1] hx, real[:, :, ::1] C, real[:, :, ::1] gates, real[:, :, ::1] H,
) except -1 nogil

cdef int sequence_backward(
    Call *call, const kernels *table, Py_ssize_t steps, Py_ssize_t batch, Py_ssize_t input_dim,
    const real[:, :, ::1] hx, const real[:, :, ::1] C, const real[:, :, ::1] gates, const real[::1] packed_h,
    const real[::1] packed_x, const real[:, :, ::1] dH, bint want_dh0, real[:, ::1] dh, real[:, ::1] dC,
    real[:, :, ::1] dX, real *dW, real *db, real[:, ::1] dz, real[::1] panels,
) except -1 nogil
