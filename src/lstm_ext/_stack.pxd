from libc.stdint cimport uint32_t, uint64_t

from lstm_ext._kernels cimport cell_options, kernels, real
from lstm_ext._passes cimport Backward, Drop, Forward, Masks, Rows
from lstm_ext._threads cimport Region


cdef struct Batch:
    # The sequences of a pass, the longest first.
    Py_ssize_t size, steps
    const Py_ssize_t *lengths  # (size); NULL: all have `steps`
    const Py_ssize_t *batch_sizes  # (steps): the number of sequences that have more than t steps; NULL with lengths
    const Py_ssize_t *state_rows  # (size): the row of each in States; NULL: its own number
    Masks masks  # for stacks that draw any


cdef inline Py_ssize_t length_of(const Batch *batch, Py_ssize_t b) noexcept nogil:
    return batch.lengths[b] if batch.lengths != NULL else batch.steps


cdef struct Chunk:
    # The steps that one pass runs of some sequences, the longest first.
    Batch batch
    const Py_ssize_t *members  # (size): which of all sequences each one is
    Py_ssize_t first_step  # of its sequences
    Py_ssize_t *first  # (size): the row of X at which each begins
    Py_ssize_t *lengths  # (size): batch.lengths, unless that is NULL
    Py_ssize_t *batch_sizes  # (steps): batch.batch_sizes, unless that is NULL
    Py_ssize_t rows  # steps of all sequences
    Py_ssize_t ended  # the first sequence that ends in this chunk


cdef struct States:
    # h (cells, rows, R) and C (cells, rows, H) of `rows` sequences; either may be NULL: none.
    void *h
    void *C
    Py_ssize_t rows


cdef inline States no_states() noexcept nogil:
    cdef States states
    states.h, states.C, states.rows = NULL, NULL, 0
    return states


cdef struct StackedCell:
    # One cell: the offsets of its weights in the flat parameter vector, its passes, and its arrays.
    Forward f
    Backward w
    cell_options options
    bint fused
    Py_ssize_t W_offset, b_offset, terms_offset, gains_offset, W_r_offset, states_offset  # -1: none
    Drop drop_h, drop_W
    void *packed  # the weights of the forward and the backward pass, by pack_layers
    void *panels_x
    void *panels_h
    void *panels_r
    void *backward_h
    void *backward_x
    void *backward_r
    void *dropped_W  # (G H, R + I), with weight_dropout
    void *h_mask
    void *zone
    void *h_T  # (B, R): h after the last step of each sequence
    void *saved_h  # (segments, B, R) and (segments, B, H): the states at the beginning of each segment
    void *saved_C


cdef struct StackData:
    # See `LayerStack`.
    const kernels *table
    Py_ssize_t layers, directions, count  # of cells: layers times directions
    Py_ssize_t input_dim, hidden_dim, state_dim, gates, features
    Py_ssize_t batch, steps, segment  # the maximum numbers of sequences, of steps, and of steps in a segment
    Py_ssize_t parameter_count  # of the cells
    bint sums, go_backwards, keeps, draws
    bint learned_h, learned_C  # whether the latest forward pass began at the learned states
    Chunk chunk  # what the latest pass ran, with arrays for the maximum numbers
    StackedCell *cells
    void **merged  # (layers): the outputs (T, B, F) of each layer; NULL: they are in its cell's h
    void **dmerged  # (layers): their gradients (T, B, F), or NULL


cdef class LayerStack:
    cdef StackData data
    cdef unsigned char[::1] memory
    cdef unsigned char *arena  # the beginning of `memory`, which holds all arrays
    cdef readonly object dtype
    cdef readonly Py_ssize_t bytes
    cdef list gaps
    cdef tuple made_for  # the arguments that its head has too
    cdef bint wants_outputs
    cdef object members  # those of the chunk that `forward` ran
    cdef int lay_out(self, options, dtype, bint want_dX, bint want_outputs) except -1
    cdef int set_offsets(self, StackedCell *d, dict offsets, options) except -1
    cdef int set_options(self, StackedCell *d, Py_ssize_t n, options) except -1
    cdef int allocate(self, StackedCell *d, dtype, options, bint want_dX) except -1
    cdef int allocate_backward(self, StackedCell *d, dtype, options, bint want_dX, Py_ssize_t V) except -1
    cdef Py_ssize_t scratch_size(self, const StackedCell *d, Py_ssize_t itemsize) noexcept
    cdef void *array(self, Py_ssize_t size, dtype) except NULL


cdef int pack_layers(
    Region *region, StackData *s, const real *parameters, const Batch *batch, bint backward, bint want_dX,
) except -1 nogil

cdef int layers_forward(
    Region *region, StackData *s, const real *parameters, const Batch *batch, const Rows *x, const States *initial,
    const Rows *H, const States *last,
) except -1 nogil

cdef int layers_backward(
    Region *region, StackData *s, const real *parameters, const Batch *batch, const Rows *dH,
    const real *dfinal, const States *dlast, const States *dinitial, const Rows *dX, real *gradient,
) except -1 nogil

cdef Rows layer_outputs(const StackData *s, Py_ssize_t layer, const real *tag) noexcept nogil

cdef double stack_work(const StackData *s, const Batch *batch, bint backward) noexcept nogil

cdef Rows rows_of(array, const Py_ssize_t *first, Py_ssize_t stride=*)

cdef States states_of(h, C)

cdef const Py_ssize_t *indices_of(array) except NULL

cdef bint inputs_are_finite(const StackData *s, const Rows *x, const real *tag) noexcept nogil

cdef void take_chunk(
    Chunk *chunk, const Py_ssize_t *first, const Py_ssize_t *lengths, const Py_ssize_t *members, Py_ssize_t count,
    Py_ssize_t first_step, Py_ssize_t steps,
) noexcept nogil
