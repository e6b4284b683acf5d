from lstm_ext._kernels cimport kernels, real
from lstm_ext._threads cimport Call

cdef int pack_cell(
    Call *call, const kernels *table, Py_ssize_t input_dim, Py_ssize_t hidden_dim, const real *W, const real *b,
    real *packed,
) except -1 nogil

cdef int pack_panels(
    Call *call, const kernels *table, Py_ssize_t depth, Py_ssize_t columns, const real *B, Py_ssize_t row_stride,
    Py_ssize_t column_stride, real *panels,
) except -1 nogil

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

cdef double shared_work(
    Py_ssize_t steps, Py_ssize_t batch, Py_ssize_t input_dim, Py_ssize_t hidden_dim, bint backward,
) noexcept nogil
