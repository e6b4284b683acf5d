# The loss of a batch, for every kind of loss (kernels/losses.h).
from lstm_ext._heads cimport READOUT_STEPS, HeadData
from lstm_ext._kernels cimport loss_row, losses, real
from lstm_ext._products cimport batch_size_at
from lstm_ext._threads cimport Region, check_signals

cdef enum:
    LOSS_ROWS = 256  # losses are summed in blocks of this many rows, and the blocks in order


cdef struct Loss:
    # A compiled loss and the targets of all sequences.
    int kind
    const double *settings
    const char *targets  # rows of `targets_per_row` numbers, or of one label of type Py_ssize_t
    Py_ssize_t targets_per_row, row_bytes
    const Py_ssize_t *target_first  # the row of each sequence, or of its first step if every step has one


cdef inline double batch_loss(
    Region *region, const HeadData *head, const Loss *loss, const Py_ssize_t *members, Py_ssize_t first_step,
    const real *tag,
) except? -1 nogil:
    """Return the mean loss over all targets of a batch, and write its gradient with respect to the outputs.

    members     the sequences of the batch, the longest first
    first_step  the time step of the first output, if every step has one
    """
    cdef Py_ssize_t t = head.slots, b, target_row, n = 0
    cdef double total = 0, block = 0, count = <double> head.rows * loss.targets_per_row
    cdef const real *y = <const real *> head.outputs
    cdef real *dy = <real *> head.doutputs
    cdef loss_row row
    row.outputs, row.targets, row.settings, row.scale = head.output_dim, loss.targets_per_row, loss.settings, 1 / count
    while t > 0:
        t -= 1
        check_signals(region, 16. * head.x.batch * row.outputs)  # an exponential is worth some multiply-adds
        for b in range(head.begin, head.begin + batch_size_at(head.x.batch_sizes, head.x.batch, t)):
            target_row = loss.target_first[members[b]]
            if head.readout == READOUT_STEPS:
                target_row += first_step + t
            row.target = loss.targets + target_row * loss.row_bytes
            block += losses(head.table, loss.kind, &row, y, dy)
            y += row.outputs
            dy += row.outputs
            n += 1
            if n % LOSS_ROWS == 0:
                total += block
                block = 0
    return (total + block) / count
