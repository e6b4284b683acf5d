from lstm_ext._kernels cimport kernels, real

cdef struct Timer:
    double work
    double deadline


# One call into the compiled half: denormals are flushed until it ends, and signals are checked from time to time.
cdef struct Call:
    unsigned long long denormals
    Timer signals


cdef void begin(Call *call) noexcept nogil
cdef void end(Call *call) noexcept nogil
cdef void start_timer(Timer *timer, double seconds) noexcept nogil
cdef bint elapsed(Timer *timer, double work) noexcept nogil
cdef int check_signals(Call *call, double work) except -1 nogil

cdef Py_ssize_t cell_blocks(const kernels *table, Py_ssize_t hidden_dim, const real *tag) noexcept nogil
cdef Py_ssize_t panel_count(const kernels *table, Py_ssize_t columns, const real *tag) noexcept nogil

cdef void pack_cell(
    const kernels *table, Py_ssize_t input_dim, Py_ssize_t hidden_dim, const real *W, const real *b, real *packed,
    Py_ssize_t first, Py_ssize_t last,
) noexcept nogil

cdef void pack_panels(
    const kernels *table, Py_ssize_t depth, Py_ssize_t columns, const real *B, Py_ssize_t row_stride,
    Py_ssize_t column_stride, real *panels, Py_ssize_t first, Py_ssize_t last,
) noexcept nogil

cdef int multiply(
    Call *call, const kernels *table, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t depth, const real *A,
    Py_ssize_t lda, const real *panels, const real *start, Py_ssize_t ld_start, real *C, Py_ssize_t ldc,
) except -1 nogil

cdef int weight_gradient(
    Call *call, const kernels *table, Py_ssize_t n, Py_ssize_t batch, Py_ssize_t outputs, const real *dy,
    Py_ssize_t ld_dy, Py_ssize_t columns, const real[:, :, ::1] hx, Py_ssize_t t, bint accumulate, real *dW, real *db,
    real *panels,
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
