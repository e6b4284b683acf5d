from lstm_ext._kernels cimport kernels, real
from lstm_ext._passes cimport Rows
from lstm_ext._products cimport Slots
from lstm_ext._stack cimport Batch, Layers
from lstm_ext._threads cimport Call


cdef enum Target:
    TARGET_LAST
    TARGET_STEPS
    TARGET_MEAN
    TARGET_MAX


cdef struct Readout:
    # See `Head`.
    const kernels *table
    Target target
    Py_ssize_t features, output_dim
    bint is_linear  # whether there are W_y and b_y
    Py_ssize_t at_W, at_b  # in the flat parameter vector
    # Set by head_forward:
    Slots x  # the features: of every step, or one slot
    Py_ssize_t slots, begin, rows  # how many slots; the first sequence that has an output; the outputs in all
    #
    void *pooled  # (B, F): features that are no rows of the stack
    void *dpooled
    double *sums  # (B, F), for the mean
    Py_ssize_t *winners  # (B, F), for the maximum: its first step
    void *packed
    void *packed_backward
    void *panels
    void *outputs  # (rows, O)
    void *doutputs


cdef class Head:
    cdef Readout at
    cdef list arrays
    cdef readonly object outputs, doutputs
    cdef readonly Py_ssize_t bytes
    cdef object array(self, Py_ssize_t size, dtype)


cdef int head_forward(
    Call *call, Readout *head, const Layers *s, const Batch *batch, Py_ssize_t since, Py_ssize_t begin,
    const real *parameters,
) except -1 nogil

cdef int head_backward(
    Call *call, const Readout *head, const Layers *s, const Batch *batch, const real *parameters, Rows *dH,
    const real **dfinal, real *gradient,
) except -1 nogil
