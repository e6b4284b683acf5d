cdef extern from "team.h" nogil:
    ctypedef void (*team_task)(void *context, Py_ssize_t index, const void *tag) noexcept nogil


cdef struct Timer:
    double work, seconds, deadline


# One call into the compiled half: until it ends denormals are flushed, the helpers are its own, if it has more than one
# thread, and the main thread looks for signals from time to time, unless `watches` is put to False.
cdef struct Call:
    unsigned long long denormals
    Timer signals
    int threads, forks
    bint watches


cdef void begin(Call *call, int threads) noexcept nogil
cdef void end(Call *call) noexcept nogil
cdef void start_timer(Timer *timer, double seconds) noexcept nogil
cdef bint elapsed(Timer *timer, double work) noexcept nogil
cdef int check_signals(Call *call, double work) except -1 nogil

# task(context, index) for index < count, in any order and by all threads of the call. `work`: the multiply-adds of all.
# Without a call, in their order: so within another loop's task.
cdef int share(Call *call, team_task task, void *context, Py_ssize_t count, double work) except -1 nogil

# How many threads a call should begin with that may use `threads` and has so much work; the helpers are there then.
cdef int recruit(int threads, double work) except -1
