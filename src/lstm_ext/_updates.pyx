"""The updates of the compiled optimizers (kernels/optimizers.h), and the norm of a gradient.

Vectors are cut into blocks of SUM_BLOCK elements, which the threads share.
"""
from libc.math cimport sqrt
from libc.string cimport memcpy

from lstm_ext._kernels cimport (
    MAX_MOMENTS, MAX_POWERS, MAX_SETTINGS, SUM_BLOCK, are_finite, kernels, optimizer_traits, real, sum_of_squares,
    table_at, traits_of_optimizer, update_step, updates,
)
from lstm_ext._products cimport ceil_div
from lstm_ext._threads cimport Region, begin_region, end_region, recruit, parallel_for, team_task


cdef struct Squares:
    const kernels *table
    Py_ssize_t n
    const void *x
    double *sums


cdef void squares_of_block(Squares *p, Py_ssize_t index, const real *tag) noexcept nogil:
    cdef Py_ssize_t start = index * SUM_BLOCK
    p.sums[index] = sum_of_squares(p.table, min(SUM_BLOCK, p.n - start), <const real *> p.x + start)


cdef double norm(Region *region, const kernels *table, const real[::1] x, double[::1] sums) except? -1 nogil:
    cdef Squares p
    cdef Py_ssize_t n = x.shape[0], count = ceil_div(n, SUM_BLOCK), j
    cdef double total = 0
    p.table, p.n, p.x, p.sums = table, n, &x[0], &sums[0]
    parallel_for(region, <team_task> squares_of_block[real], &p, count, 2. * n)
    for j in range(count):
        total += sums[j]
    return sqrt(total)


cdef int make_optimizer(
    Optimizer *optimizer, const kernels *table, int kind, const double[::1] settings, double[::1] powers,
    real[:, ::1] moments, real[::1] parameters, const real[::1] gradient, real[:, ::1] backup,
) except -1:
    cdef const optimizer_traits *traits = traits_of_optimizer(kind)
    cdef Py_ssize_t n = parameters.shape[0], count = moments.shape[0]
    if settings.shape[0] != traits.settings or powers.shape[0] != traits.powers:
        raise ValueError(
            f"optimizer has {settings.shape[0]} settings and {powers.shape[0]} powers; expected {traits.settings} and "
            f"{traits.powers}"
        )
    if not traits.min_moments <= count <= traits.max_moments or (count > 0 and moments.shape[1] != n):
        raise ValueError(
            f"optimizer.moments has shape {(count, moments.shape[1])}; expected {traits.max_moments} rows of {n}"
        )
    if gradient.shape[0] != n:
        raise ValueError(f"gradient has shape {(gradient.shape[0],)}; expected {(n,)}")
    if backup.shape[0] <= count or backup.shape[1] != n:
        raise ValueError(f"backup has shape {(backup.shape[0], backup.shape[1])}; expected {count + 1} rows of {n}")
    optimizer.table, optimizer.kind, optimizer.n, optimizer.moment_count = table, kind, n, count
    optimizer.settings, optimizer.powers = &settings[0], &powers[0]
    optimizer.parameters, optimizer.gradient = &parameters[0], &gradient[0]
    optimizer.moments, optimizer.backup = &moments[0, 0], &backup[0, 0]
    return 0


cdef struct Update:
    const Optimizer *optimizer
    update_step step
    bint not_finite  # set by any thread, read after all blocks are done


cdef void update_block(Update *p, Py_ssize_t index, const real *tag) noexcept nogil:
    """Copy one block to the backup, update it, and look for NaN and Inf while it is in the cache."""
    cdef const Optimizer *o = p.optimizer
    cdef Py_ssize_t start = index * SUM_BLOCK, n = min(SUM_BLOCK, o.n - start), j
    cdef real *parameters = <real *> o.parameters + start
    cdef real *moments[MAX_MOMENTS]
    for j in range(MAX_MOMENTS):
        moments[j] = <real *> o.moments + j * o.n + start if j < o.moment_count else NULL
    memcpy(<real *> o.backup + start, parameters, n * sizeof(real))
    for j in range(o.moment_count):
        memcpy(<real *> o.backup + (1 + j) * o.n + start, moments[j], n * sizeof(real))
    updates(o.table, o.kind, &p.step, n, parameters, <const real *> o.gradient + start, moments)
    if not are_finite(o.table, n, parameters):
        p.not_finite = True
    for j in range(o.moment_count):
        if not are_finite(o.table, n, moments[j]):
            p.not_finite = True


cdef bint update(Region *region, const Optimizer *optimizer, double scale, const real *tag) except -1 nogil:
    cdef const optimizer_traits *traits = traits_of_optimizer(optimizer.kind)
    cdef double settings[MAX_SETTINGS]  # those of this update; other threads may assign new ones meanwhile
    cdef double powers[MAX_POWERS]
    cdef Update p
    cdef size_t size = optimizer.n * sizeof(real)
    cdef bint watches = region.watches
    memcpy(settings, optimizer.settings, traits.settings * sizeof(double))
    memcpy(powers, optimizer.powers, traits.powers * sizeof(double))
    traits.advance(settings, powers)
    p.optimizer, p.not_finite = optimizer, False
    p.step.settings, p.step.powers, p.step.scale = settings, powers, scale
    region.watches = False  # an update that has begun is finished
    parallel_for(region, <team_task> update_block[real], &p, ceil_div(optimizer.n, SUM_BLOCK), 4. * optimizer.n)
    region.watches = watches
    if p.not_finite:
        memcpy(optimizer.parameters, optimizer.backup, size)
        memcpy(optimizer.moments, <char *> optimizer.backup + size, optimizer.moment_count * size)
        return False
    memcpy(optimizer.powers, powers, traits.powers * sizeof(double))
    return True


def update_parameters(
    int isa, int threads, int kind, const double[::1] settings, double[::1] powers, real[:, ::1] moments,
    real[::1] parameters, const real[::1] gradient, real[:, ::1] backup,
) -> bool:
    """Make one update outside of the training loop; return whether it was made, as `update` does."""
    cdef Optimizer optimizer
    cdef Region region
    cdef bint made
    make_optimizer(&optimizer, table_at(isa), kind, settings, powers, moments, parameters, gradient, backup)
    threads = recruit(threads, 4. * parameters.shape[0])
    with nogil:
        begin_region(&region, threads)
        try:
            made = update(&region, &optimizer, 1, &parameters[0])
        finally:
            end_region(&region)
    return made
