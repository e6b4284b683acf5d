cdef extern from "team.h" nogil:
    ctypedef void (*team_task)(void *context, Py_ssize_t index, const void *tag) noexcept nogil


cdef struct Timer:
    double work, seconds, deadline


# One call into the compiled half: until it ends denormals are flushed, the helpers are its own, if it has more than one
# thread, and the main thread looks for signals from time to time, unless `watches` is put to False.
cdef struct Region:
    unsigned long long denormals
    Timer signals
    int threads, forks
    bint watches


cdef void begin_region(Region *region, int threads) noexcept nogil
cdef void end_region(Region *region) noexcept nogil
cdef void start_timer(Timer *timer, double seconds) noexcept nogil
cdef bint elapsed(Timer *timer, double work) noexcept nogil
cdef int check_signals(Region *region, double work) except -1 nogil

# Run task(context, index) for index < count on all threads of the region, in any order. `work` is the number of
# multiply-adds of all tasks. Without a region the calling thread runs them in order, as within another loop's task.
cdef int parallel_for(Region *region, team_task task, void *context, Py_ssize_t count, double work) except -1 nogil

# How many threads a call should begin with that may use `threads` and has so much work; the helpers are there then.
cdef int recruit(int threads, double work) except -1
