"""The training loop: forward, loss, backward, clip, update; many batches in one call, without the GIL.

Design
------
- A pass runs one batch, or with truncated backpropagation a chunk of its steps. Its phases can be asked for one by one,
  so that a loss or an optimizer written in Python runs between them.
- `TrainingLoop` declares everything that the loop reads and writes, and checks each array when it is given: the passes
  rely on dtypes, shapes and indices.
"""
cimport cython
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport isfinite
from libc.stdint cimport uint64_t

import numpy as np

from lstm_ext._heads cimport READOUT_STEPS, Head, HeadData, head_backward, head_forward, pack_head
from lstm_ext._kernels cimport SUM_BLOCK, are_finite, kernels, philox_key, real, traits_of_loss
from lstm_ext._losses cimport Loss, batch_loss
from lstm_ext._passes cimport Rows, no_rows
from lstm_ext._products cimport ceil_div, first_byte
from lstm_ext._stack cimport (
    Batch, Chunk, StackData, LayerStack, States, inputs_are_finite, layers_backward, layers_forward, no_states,
    pack_layers, stack_work, take_chunk,
)
from lstm_ext._threads cimport Region, Timer, begin_region, elapsed, end_region, recruit, start_timer
from lstm_ext._updates cimport Optimizer, make_optimizer, norm, update

cdef enum:
    _FORWARD = 1
    _LOSS = 2
    _BACKWARD = 4
    _UPDATE = 8
    PASS_WORK = 5000  # multiply-adds: the cost of a pass in addition to its products

cdef enum:  # how a run ended
    _DONE = 0
    _NOT_FINITE = 1
    _UPDATE_NOT_FINITE = 2

FORWARD, LOSS, BACKWARD, UPDATE = _FORWARD, _LOSS, _BACKWARD, _UPDATE
DONE, NOT_FINITE, UPDATE_NOT_FINITE = _DONE, _NOT_FINITE, _UPDATE_NOT_FINITE
INDEX = np.dtype(np.intp)


cdef struct LoopData:
    # What the loop reads and writes: n parameters, N sequences, B of them in a batch, P passes in an epoch.
    StackData *stack
    HeadData *head
    void *parameters  # (n)
    void *gradient  # (n); NULL: no backward pass
    Rows x  # the rows of X, and `first` of the chunk
    const Py_ssize_t *first  # (N): the row of X at which each sequence begins
    const Py_ssize_t *lengths  # (N): its steps
    Loss loss  # with the rows of Y; its `targets` NULL: none
    bint unchecked_X, unchecked_Y  # whether the rows of X and Y may hold NaN or Inf
    const Py_ssize_t *members  # (N): the sequences in the order of their batches, in each the longest first
    const Py_ssize_t *unsorted_positions  # (N): the position of each member in its batch before sorting; NULL: the same
    const Py_ssize_t *starts  # (P): the index in `members` at which the batch of each pass begins
    const Py_ssize_t *first_steps  # (P): the step at which each pass begins
    double *losses  # (P): the mean loss of each pass
    double *counts  # (P): the number of outputs that it is the mean of
    double *norms  # (P): the norm of its gradient
    Py_ssize_t sequences, batch_size, passes  # N, B, P
    uint64_t seed, updates  # of the masks; the updates so far
    bint draws  # whether masks are drawn
    double clip_norm  # the maximum norm of a gradient
    States carried  # (cells, B, ...): the states after a chunk, for the next one; NULL if all passes are whole batches


cdef void take_pass(LoopData *loop, Py_ssize_t index) noexcept nogil:
    """Set the chunk to what a pass runs."""
    cdef Py_ssize_t start = loop.starts[index]
    take_chunk(
        &loop.stack.chunk, loop.first, loop.lengths, loop.members + start, min(loop.batch_size, loop.sequences - start),
        loop.first_steps[index], loop.stack.steps,
    )


cdef void draw_masks(LoopData *loop, Py_ssize_t index) noexcept nogil:
    """Set the counters of the chunk's masks, which belong to the update that its pass makes."""
    cdef Batch *batch = &loop.stack.chunk.batch
    philox_key(loop.seed, loop.updates, batch.masks.key)
    batch.masks.first_step = loop.stack.chunk.first_step
    batch.masks.mask_rows = loop.unsorted_positions + loop.starts[index] if loop.unsorted_positions != NULL else NULL


cdef bint targets_are_finite(const LoopData *loop, const real *tag) noexcept nogil:
    """Whether the targets that the chunk reads are finite."""
    cdef const Chunk *chunk = &loop.stack.chunk
    cdef bint every_step = loop.head.readout == READOUT_STEPS
    cdef Py_ssize_t width = loop.loss.targets_per_row, b, row, n = width
    for b in range(chunk.batch.size):
        row = loop.loss.target_first[chunk.members[b]]
        if every_step:
            n, row = chunk.lengths[b] * width, row + chunk.first_step
        if not are_finite(loop.head.table, n, <const real *> loop.loss.targets + row * width):
            return False
    return True


cdef int forward_pass(Region *region, LoopData *loop, Py_ssize_t index, const real *parameters) except -1 nogil:
    """Compute the outputs of the chunk; a chunk that does not begin its batch continues from the carried states."""
    cdef StackData *s = loop.stack
    cdef HeadData *head = loop.head
    cdef const Chunk *chunk = &loop.stack.chunk
    cdef States zeros = no_states()
    cdef Rows nowhere = no_rows()
    pack_layers(region, s, parameters, &chunk.batch, False, False)
    pack_head(region, head, parameters)
    layers_forward(
        region, s, parameters, &chunk.batch, &loop.x, &loop.carried if chunk.first_step > 0 else &zeros, &nowhere,
        &loop.carried,
    )
    head_forward(
        region, head, s, &chunk.batch, chunk.first_step, 0 if head.readout == READOUT_STEPS else chunk.ended,
        parameters,
    )
    loop.losses[index], loop.counts[index], loop.norms[index] = 0, head.rows, 0
    return 0


cdef int backward_pass(Region *region, LoopData *loop, const real *parameters, real *gradient) except -1 nogil:
    """Compute the gradient, from that of the outputs in the head."""
    cdef StackData *s = loop.stack
    cdef const Batch *batch = &loop.stack.chunk.batch
    cdef States none = no_states()
    cdef Rows dH, nowhere = no_rows()
    cdef const real *dfinal
    head_backward(region, loop.head, s, batch, parameters, &dH, &dfinal, gradient)
    pack_layers(region, s, parameters, batch, True, False)
    layers_backward(region, s, parameters, batch, &dH, dfinal, &none, &none, &nowhere, gradient)
    return 0


cdef int run_pass(
    Region *region, LoopData *loop, const Optimizer *optimizer, Py_ssize_t index, int phases, const real *parameters,
    real[::1] gradient, double[::1] sums,
) except -1 nogil:
    """Run some phases of a pass; return whether it went well, or what was not finite. See `TrainingLoop`."""
    cdef const kernels *table = loop.head.table
    cdef double scale
    take_pass(loop, index)
    if loop.draws:
        draw_masks(loop, index)
    if phases & _FORWARD:
        if loop.unchecked_X and not inputs_are_finite(loop.stack, &loop.x, parameters):
            return _NOT_FINITE
        if loop.unchecked_Y and not targets_are_finite(loop, parameters):
            return _NOT_FINITE
        forward_pass(region, loop, index, parameters)
    if loop.counts[index] == 0:  # no sequence ends in this chunk
        return _DONE
    if phases & _LOSS:
        loop.losses[index] = batch_loss(
            region, loop.head, &loop.loss, loop.stack.chunk.members, loop.stack.chunk.first_step, parameters,
        )
        if not isfinite(loop.losses[index]):
            return _NOT_FINITE
    if phases & _BACKWARD:
        backward_pass(region, loop, parameters, &gradient[0])
        loop.norms[index] = norm(region, table, gradient, sums)
        if not isfinite(loop.norms[index]):
            return _NOT_FINITE
    if phases & _UPDATE:
        scale = loop.clip_norm / loop.norms[index] if loop.norms[index] > loop.clip_norm else 1
        if not update(region, optimizer, scale, parameters):
            return _UPDATE_NOT_FINITE
        loop.updates += 1
    return _DONE


cdef double pass_work(const LoopData *loop, Py_ssize_t index) noexcept nogil:
    """The cost of a pass in multiply-adds, roughly: a constant, and three products for each row."""
    cdef double head_work = <double> loop.head.output_dim * loop.head.features
    cdef double layers_work = <double> loop.stack.chunk.rows * loop.stack.parameter_count
    return PASS_WORK + 3 * (layers_work + loop.counts[index] * head_work)


cdef tuple run_passes(
    TrainingLoop loop, Py_ssize_t index, Py_ssize_t stop, int phases, double seconds, const real *tag,
):
    """See `TrainingLoop.run`."""
    cdef LoopData *data = &loop.data
    cdef bint learns = phases & _UPDATE
    cdef Region region
    cdef Timer timer
    cdef int outcome = _DONE, threads
    optimizer = loop.optimizer
    if learns:
        optimizer.check(loop.parameters)  # callbacks may have changed its settings
    cdef real[::1] parameters = loop.parameters, gradient = loop.gradient
    cdef real[:, ::1] moments = optimizer._begin(loop.parameters) if learns else None
    cdef real[:, ::1] backup = loop.backup if learns else None
    cdef const double[::1] settings = optimizer._settings if learns else None
    cdef double[::1] powers = optimizer._powers if learns else None
    cdef double[::1] sums = loop.sums
    cdef Optimizer updater
    if learns:
        make_optimizer[real](
            &updater, data.head.table, optimizer.kind, settings, powers, moments, parameters, gradient, backup,
        )
    threads = recruit(loop.threads, shared_work_of_batch(data, phases & _BACKWARD))
    with nogil:
        begin_region(&region, threads)
        start_timer(&timer, seconds)
        try:
            while index < stop:
                outcome = run_pass(
                    &region, data, &updater, index, phases, <const real *> &parameters[0], gradient, sums,
                )
                if outcome != _DONE:
                    break
                index += 1
                if elapsed(&timer, pass_work(data, index - 1)):
                    break
        finally:
            end_region(&region)
    return index, outcome


cdef double shared_work_of_batch(const LoopData *loop, bint backward) noexcept nogil:
    """The work of the largest pass that threads can share."""
    cdef Batch batch
    batch.size, batch.steps = loop.batch_size, loop.stack.steps
    return stack_work(loop.stack, &batch, backward)


cdef int check_rows(
    str name, Py_ssize_t rows, Py_ssize_t N, const Py_ssize_t *first, const Py_ssize_t *lengths,
) except -1:
    """Raise unless the rows of all N sequences are there; lengths NULL: each has one."""
    cdef Py_ssize_t n, length = 1
    for n in range(N):
        if lengths != NULL:
            length = lengths[n]
        if not (length >= 1 and 0 <= first[n] <= rows - length):
            raise ValueError(f"{name} has {rows} rows; sequence {n} would have {length} from {first[n]} on")
    return 0


cdef bint order_fits(const LoopData *loop, Py_ssize_t passes) noexcept nogil:
    """Whether every pass begins at a step of a batch whose members are sequences, the longest first."""
    cdef Py_ssize_t index, start, n
    for n in range(loop.sequences):
        if not 0 <= loop.members[n] < loop.sequences:
            return False
    for index in range(passes):
        start = loop.starts[index]
        if not (0 <= start < loop.sequences and 0 <= loop.first_steps[index] < loop.lengths[loop.members[start]]):
            return False
        for n in range(start + 1, min(start + loop.batch_size, loop.sequences) if loop.first_steps[index] == 0 else 0):
            if loop.lengths[loop.members[n]] > loop.lengths[loop.members[n - 1]]:
                return False
    return True


@cython.auto_pickle(False)
cdef class TrainingLoop:
    """A network's parameters, its data and the arrays of their passes: everything that the compiled loop reads.

    Each array is checked when it is given, and its memory is kept; it must not be reallocated.

    Parameters
    ----------
    stack, head : LayerStack, Head
        Made for one network, dtype, batch size and number of steps of a pass.
    parameters : ndarray (n,)
        The network's flat vector; updates change it.
    gradient : ndarray (n,) or (0,)
        Where the gradient is written; empty for a loop without backward passes.
    rows : ndarray (rows of X, input_dim)
        The steps of all sequences.
    first, lengths : ndarray of intp (N,)
        The row of X at which each sequence begins, and its number of steps.
    loss : CompiledLoss or None
        None for a loop without losses.
    targets : ndarray (rows of Y, output_dim), or of intp (rows of Y,)
        What the loss takes, numbers or labels in [0, output_dim).
    target_first : ndarray of intp (N,)
        The row of `targets` that belongs to each sequence, or to its first step if every step has one.
    unchecked_X, unchecked_Y : bool
        Whether `rows` and `targets` may hold NaN or Inf; each pass then checks those that it reads.
    optimizer : compiled optimizer or None
        None for a loop without updates.
    backup : ndarray (vectors, n)
        What an update changes, as it was before: the parameters and the optimizer's moments.
    clip_norm : float
        The maximum norm of a gradient; infinity for none.
    dropout_seed : int, optional
        The seed of the dropout masks; None: nothing is dropped.
    threads : int
        The maximum number of threads.

    Attributes
    ----------
    losses, counts, norms : ndarray (passes,)
        For each pass of the epoch: its mean loss, the number of outputs that this is the mean of, and the norm of its
        gradient. A pass without outputs has the loss 0.
    updates : int
        The number of updates so far.
    unchecked_X, unchecked_Y : bool
        As above; may be set.
    """

    cdef LoopData data
    cdef LayerStack stack
    cdef Head head
    cdef readonly object parameters, gradient, losses, counts, norms
    cdef object optimizer, backup, sums
    cdef list arrays  # `data` points into their memory
    cdef Py_ssize_t kept  # the number of arrays that do not belong to the order
    cdef int threads

    def __init__(
        self, LayerStack stack, Head head, *, parameters, gradient, rows, first, lengths, loss, targets,
        target_first, bint unchecked_X, bint unchecked_Y, optimizer, backup, double clip_norm, dropout_seed,
        int threads,
    ):
        cdef LoopData *loop = &self.data
        cdef StackData *s = &stack.data
        cdef HeadData *h = &head.data
        cdef Py_ssize_t N = len(lengths), n = s.parameter_count
        cdef bint every_step = h.readout == READOUT_STEPS
        cdef char code = ord(stack.dtype.char)
        if h.is_linear:
            n += h.output_dim * (h.features + 1)
        if (
            head.made_for != stack.made_for or (head.needs_steps and not stack.wants_outputs)
            or (h.is_linear and h.b_offset + h.output_dim != n) or (dropout_seed is not None and not s.draws)
        ):
            raise ValueError("stack and head are not made for the same passes; expected those of one network")
        self.stack, self.head, self.optimizer, self.threads = stack, head, optimizer, threads
        self.parameters, self.gradient, self.backup = parameters, gradient, backup
        self.sums, self.arrays = np.empty(ceil_div(n, SUM_BLOCK)), []
        loop.stack, loop.head, loop.sequences, loop.batch_size, loop.clip_norm = s, h, N, s.batch, clip_norm
        loop.draws, loop.seed = dropout_seed is not None, dropout_seed or 0
        outputs = s.batch * s.steps if every_step else s.batch
        self.take("head.outputs", head.outputs, code, outputs, h.output_dim)
        loop.parameters = self.take("parameters", parameters, code, n)
        loop.gradient = self.take("gradient", gradient, code, n if len(gradient) > 0 else 0)
        loop.x.data = self.take("rows", rows, code, len(rows), s.input_dim)
        loop.first = <Py_ssize_t *> self.take("first", first, c"n", N)
        loop.lengths = <Py_ssize_t *> self.take("lengths", lengths, c"n", N)
        loop.unchecked_X, loop.unchecked_Y = unchecked_X, unchecked_Y and loss is not None
        check_rows("rows", len(rows), N, loop.first, loop.lengths)
        if loss is not None:
            self.take_loss(loss, targets, target_first, code)
        self.make_arrays(lengths.max() > s.steps)
        self.kept = len(self.arrays)

    cdef int take_loss(self, loss, targets, target_first, char code) except -1:
        cdef LoopData *loop = &self.data
        cdef Loss *data = &loop.loss
        cdef bint labels
        data.kind = loss.kind
        labels = traits_of_loss(data.kind).takes_labels
        data.settings = <double *> self.take("loss.settings", loss.settings, c"d", len(loss.settings))
        data.targets_per_row = 1 if labels else loop.head.output_dim
        data.row_bytes = data.targets_per_row * <Py_ssize_t> targets.itemsize
        data.targets = <char *> self.take(
            "targets", targets, c"n" if labels else code, len(targets), -1 if labels else data.targets_per_row,
        )
        data.target_first = <Py_ssize_t *> self.take("target_first", target_first, c"n", loop.sequences)
        check_rows(
            "targets", len(targets), loop.sequences, data.target_first,
            loop.lengths if loop.head.readout == READOUT_STEPS else NULL,
        )
        return 0

    cdef int make_arrays(self, bint in_chunks) except -1:
        """Make the arrays that passes write to, except for those of the stack and the head."""
        cdef LoopData *loop = &self.data
        cdef StackData *s = loop.stack
        loop.x.first, loop.x.width, loop.x.step_stride = s.chunk.first, s.input_dim, 1
        if in_chunks:
            loop.carried.h = self.new(self.stack.dtype, (s.count, s.batch, s.state_dim))
            loop.carried.C = self.new(self.stack.dtype, (s.count, s.batch, s.hidden_dim))
            loop.carried.rows = s.batch
        return 0

    cdef void *new(self, dtype, tuple shape) except NULL:
        """Keep a new array; return where it begins."""
        array = np.empty(shape, dtype)
        self.arrays.append(array)
        return first_byte(array)

    cdef void *take(self, str name, array, char code, Py_ssize_t rows, Py_ssize_t columns=-1) except? NULL:
        """Keep an array; return where it begins, NULL if it is empty. Raise unless it is as expected.

        code  'f' or 'd' for floats, 'n' for intp
        """
        cdef Py_buffer view
        cdef bint fits = False
        if array.flags.c_contiguous:
            PyObject_GetBuffer(array, &view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)
            fits = view.format[1] == 0 and view.ndim == (1 if columns < 0 else 2) and view.shape[0] == rows
            fits = fits and (columns < 0 or view.shape[1] == columns)
            if code == c"n":
                fits = fits and view.format[0] in b"lq" and view.itemsize == sizeof(Py_ssize_t)
            else:
                fits = fits and view.format[0] == code
            PyBuffer_Release(&view)
        if not fits:
            dtype, shape = np.dtype(np.intp if code == c"n" else chr(code)), [rows, columns][:2 if columns >= 0 else 1]
            raise ValueError(f"{name} is {array.dtype} {list(array.shape)}; expected a C-contiguous {dtype} {shape}")
        self.arrays.append(array)
        return view.buf if view.len > 0 else NULL

    def set_order(self, members, unsorted_positions, starts, first_steps):
        """Take the order of an epoch's passes, and forget the losses of the epoch before.

        Parameters
        ----------
        members : ndarray of intp (N,)
            The sequences in the order of their batches, in each batch the longest first.
        unsorted_positions : ndarray of intp (N,) or (0,)
            The position of each member in its batch before the batch was sorted; empty if it is where it was.
        starts, first_steps : ndarray of intp (passes,)
            The index in `members` at which the batch of each pass begins, and the step at which the pass begins.
        """
        cdef LoopData *loop = &self.data
        cdef Py_ssize_t N = loop.sequences, passes = len(starts)
        del self.arrays[self.kept:]
        loop.passes = 0  # until all is checked
        loop.members = <Py_ssize_t *> self.take("members", members, c"n", N)
        loop.unsorted_positions = <Py_ssize_t *> self.take(
            "unsorted_positions", unsorted_positions, c"n", N if len(unsorted_positions) > 0 else 0
        )
        loop.starts = <Py_ssize_t *> self.take("starts", starts, c"n", passes)
        loop.first_steps = <Py_ssize_t *> self.take("first_steps", first_steps, c"n", passes)
        if not order_fits(loop, passes):
            raise ValueError("the passes are not those of batches of these sequences, the longest first")
        results = np.zeros((3, passes))
        self.losses, self.counts, self.norms = results
        loop.losses = <double *> self.take("losses", results, c"d", 3, passes)
        loop.counts, loop.norms = loop.losses + passes, loop.losses + 2 * passes
        loop.passes = passes

    @property
    def updates(self):
        return self.data.updates

    @updates.setter
    def updates(self, uint64_t value):
        self.data.updates = value

    @property
    def unchecked_X(self):
        return self.data.unchecked_X

    @property
    def unchecked_Y(self):
        return self.data.unchecked_Y

    def trust_data(self):
        """Check the rows of X and Y no more: an epoch has checked all of them."""
        self.data.unchecked_X = self.data.unchecked_Y = False

    def run(self, Py_ssize_t index, Py_ssize_t stop, int phases, double seconds):
        """Run passes of the epoch until `stop`, until `seconds` have passed at a pass's end, or until one fails.

        Parameters
        ----------
        index, stop : int
            The range of passes.
        phases : int
            A sum of FORWARD, LOSS, BACKWARD, UPDATE. BACKWARD alone takes the loss's gradient from `head.doutputs`.
        seconds : float
            When to return, for progress, callbacks and signals.

        Returns
        -------
        index : int
            The next pass; if not DONE, the one that failed, whose update was not made.
        outcome : int
            NOT_FINITE if this pass's loss or the norm of its gradient is NaN or infinite, or its unchecked data;
            UPDATE_NOT_FINITE if its update leads to such a number; else DONE.
        """
        if not 0 <= index <= stop <= self.data.passes:
            raise ValueError(f"passes {index} to {stop} are not among the {self.data.passes} of the epoch")
        if (
            (phases & _LOSS and self.data.loss.targets == NULL)
            or (phases & _BACKWARD and (self.data.gradient == NULL or not self.data.stack.keeps))
            or (phases & _UPDATE and self.optimizer is None)
        ):
            raise ValueError(f"phases is {phases}; expected those that this loop was made for")
        if self.stack.dtype.itemsize == sizeof(float):
            return run_passes(self, index, stop, phases, seconds, <const float *> NULL)
        return run_passes(self, index, stop, phases, seconds, <const double *> NULL)
