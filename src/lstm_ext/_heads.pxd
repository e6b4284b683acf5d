from lstm_ext._kernels cimport kernels, real
from lstm_ext._passes cimport Rows
from lstm_ext._products cimport StepRows
from lstm_ext._stack cimport Batch, StackData
from lstm_ext._threads cimport Region, team_task


cdef enum Readout:  # their names: `READOUTS` in _heads.pyx
    READOUT_LAST
    READOUT_STEPS
    READOUT_MEAN
    READOUT_MAX
    READOUT_COUNT


cdef struct Pool:
    # How a readout pools the outputs of a sequence's live steps: `POOLS` in _heads.pyx.
    team_task forward_f32, forward_f64  # of a PoolTask and a sequence
    team_task backward_f32, backward_f64
    Py_ssize_t scratch  # bytes for each feature of a sequence


cdef struct HeadData:
    # See `Head`.
    const kernels *table
    Readout readout
    const Pool *pool  # NULL unless the readout pools
    Py_ssize_t features, output_dim
    bint is_linear  # whether there are W_y and b_y
    Py_ssize_t W_offset, b_offset  # in the flat parameter vector
    # Set by head_forward:
    StepRows x  # the features: of every step, or one slot
    Py_ssize_t slots, begin, rows  # how many slots; the first sequence that has an output; the outputs in all
    #
    void *pooled  # (B, F): features that are no rows of the stack
    void *dpooled
    void *pool_scratch  # (B, F), kept from one chunk to the next and for the backward pass
    void *packed
    void *packed_backward
    void *panels
    void *outputs  # (rows, O)
    void *doutputs


cdef class Head:
    cdef HeadData data
    cdef list arrays
    cdef readonly object outputs, doutputs
    cdef readonly Py_ssize_t bytes
    cdef readonly bint needs_steps
    cdef bint measures
    cdef tuple made_for  # the arguments that its stack has too
    cdef void *array(self, Py_ssize_t size, dtype) except NULL


cdef int pack_head(Region *region, const HeadData *head, const real *parameters) except -1 nogil

cdef int head_forward(
    Region *region, HeadData *head, const StackData *s, const Batch *batch, Py_ssize_t first_step, Py_ssize_t begin,
    const real *parameters,
) except -1 nogil

cdef int head_rows(
    Region *region, HeadData *head, const StackData *s, const Batch *batch, Py_ssize_t first_step, Py_ssize_t begin,
    const real *parameters, const Rows *Y,
) except -1 nogil

cdef int head_backward(
    Region *region, const HeadData *head, const StackData *s, const Batch *batch, const real *parameters, Rows *dH,
    const real **dfinal, real *gradient,
) except -1 nogil
