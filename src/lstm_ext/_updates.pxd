from lstm_ext._kernels cimport kernels, real
from lstm_ext._threads cimport Region


cdef struct Optimizer:
    # A compiled optimizer, its state, and what it updates.
    const kernels *table
    int kind
    Py_ssize_t n, moment_count  # the number of parameters, and of the moments that are kept
    const double *settings
    double *powers
    void *parameters  # (n)
    const void *gradient  # (n)
    void *moments  # (moment_count, n)
    void *backup  # (1 + moment_count, n): scratch


# Set an Optimizer, or raise unless the shapes of all arrays fit its kind. It does not keep the arrays alive.
cdef int make_optimizer(
    Optimizer *optimizer, const kernels *table, int kind, const double[::1] settings, double[::1] powers,
    real[:, ::1] moments, real[::1] parameters, const real[::1] gradient, real[:, ::1] backup,
) except -1

# Make one update with scale * gradient and return True. If a result is NaN or Inf, change nothing and return False.
cdef bint update(Region *region, const Optimizer *optimizer, double scale, const real *tag) except -1 nogil

# The Euclidean norm. `sums` takes the sum of each block of SUM_BLOCK; they are added in order.
cdef double norm(Region *region, const kernels *table, const real[::1] x, double[::1] sums) except? -1 nogil
