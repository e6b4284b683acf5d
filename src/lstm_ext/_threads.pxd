cdef extern from "team.h" nogil:
    ctypedef void (*team_task)(void *context, Py_ssize_t index, const void *tag) noexcept nogil


cdef struct Timer:
    double work, seconds, deadline


# A call into the compiled half. Until it ends, denormals are flushed, the helpers belong to it if it has more than one
# thread, and the main thread checks for signals from time to time unless `watches` is False.
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

# Run task(context, index) for all index < count on the threads of the region, in any order. `work` is the number of
# multiply-adds of all tasks. Without a region (NULL) the calling thread runs them in order, as a part of another task.
cdef int parallel_for(Region *region, team_task task, void *context, Py_ssize_t count, double work) except -1 nogil

# Return the number of threads for a call with this work, at most `threads`, and start the helpers that it needs.
cdef int recruit(int threads, double work) except -1
