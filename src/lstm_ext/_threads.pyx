"""Calls into the compiled half, and the threads that share their loops.

Design
------
- One Python thread enters a call. It works like every helper, and only it talks to Python: it flushes denormals for the
  time of the call and runs signal handlers between two of its tasks.
- Helpers are daemon threads of Python that never return from ``team_serve`` (team.h), so they need no GIL, hold no
  object, and do not survive a fork. They sleep while there is no call.
- Work is counted in multiply-adds. The number of threads of a loop follows from its work and from the cost of sharing.
"""
import os
import threading

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.math cimport sqrt

from lstm_ext._kernels cimport denormals_flush, denormals_restore, wall_seconds

cdef extern from "Python.h" nogil:
    unsigned long PyThread_get_thread_ident()

cdef extern from "team.h" nogil:
    enum:
        TEAM_MAX
        TEAM_MAX_COUNT
    bint team_take()
    void team_give_back()
    bint team_rests()
    void team_open(int workers, Py_ssize_t count, team_task task, void *context)
    Py_ssize_t team_claim()
    void team_close(Py_ssize_t done)
    bint team_seat(int index)
    void team_serve(int index)
    void team_forget()
    void team_adjust(bint rests, int lateness)
    void team_pause(int count)

# Times as multiply-adds, at 50 per ns; measured on two cores of a Zen 4 machine.
cdef double JOINING = 1e4  # 0.2 us: the cost of each further thread of a loop
cdef double WAKING = 4e6  # 80 us: the work from which a call gains by waking helpers, which takes 20 to 50 us
cdef double FOLLOWING = 5e5  # 10 us: the same for a call that follows another and finds the helpers awake
cdef double REGION_WORK = 500  # 10 ns: a loop's cost in addition to its work
cdef double CLOCK_WORK = 1e7  # 0.2 ms: the work between two looks at the clock

# A call follows another if it begins within this time, plus that of the work, of the other's beginning: helpers stay
# awake for some 20 us.
cdef double GAP_SECONDS = 3e-5, SECONDS_OF_WORK = 4e-11

cdef double SIGNAL_SECONDS = 0.1  # between checks: one waits 5 ms for the GIL while another thread holds it
cdef double _signal_seconds = SIGNAL_SECONDS

MAX_THREADS = TEAM_MAX

cdef unsigned long _main_thread = threading.main_thread().ident
cdef int _forks = 0  # the number of forks between the import and this process


cdef void begin_region(Region *region, int threads) noexcept nogil:
    region.denormals = denormals_flush()
    region.threads = threads if threads > 1 and team_take() else 1
    region.forks = _forks
    region.watches = PyThread_get_thread_ident() == _main_thread  # handlers run nowhere else
    start_timer(&region.signals, _signal_seconds)


cdef void end_region(Region *region) noexcept nogil:
    if region.threads > 1:
        team_give_back()
    denormals_restore(region.denormals)


cdef void start_timer(Timer *timer, double seconds) noexcept nogil:
    timer.work, timer.seconds, timer.deadline = 0, seconds, 0


cdef bint elapsed(Timer *timer, double work) noexcept nogil:
    """Whether the seconds have passed, as of the last look at the clock; they begin with the first look."""
    timer.work += work + REGION_WORK
    if timer.work < CLOCK_WORK:
        return False
    timer.work = 0
    if timer.deadline == 0:
        timer.deadline = wall_seconds() + timer.seconds
    return wall_seconds() >= timer.deadline


cdef int check_signals(Region *region, double work) except -1 nogil:
    """Run Python's signal handlers from time to time. Their exceptions end the pass, which has changed scratch only."""
    if region.watches and elapsed(&region.signals, work):
        denormals_restore(region.denormals)
        with gil:
            run_signal_handlers(region)
        region.denormals = denormals_flush()
        start_timer(&region.signals, _signal_seconds)
    return 0


cdef int run_signal_handlers(Region *region) except -1:
    cdef bint helped = region.threads > 1
    try:
        PyErr_CheckSignals()
    finally:
        if region.forks != _forks:
            region.threads = 1  # this is the child: neither the helpers nor their work are here
    if helped and region.threads == 1:
        raise RuntimeError("a signal handler forked in the middle of a call: the child cannot go on with it")
    return 0


cdef int parallel_for(Region *region, team_task task, void *context, Py_ssize_t count, double work) except -1 nogil:
    cdef Py_ssize_t index = -1, done = 0
    cdef int workers
    cdef double task_work = work / count
    if region == NULL:
        for index in range(count):
            task(context, index, NULL)
        return 0
    workers = <int> min(region.threads, count)
    if workers > 1:  # n threads take work / n + n JOINING; this n minimises it
        workers = min(workers, <int> min(sqrt(work / JOINING), TEAM_MAX))
    if workers < 2 or count > TEAM_MAX_COUNT or team_rests():
        for index in range(count):
            task(context, index, NULL)
            check_signals(region, task_work)
        return 0
    team_open(workers, count, task, context)
    try:
        index = team_claim()
        while index >= 0:
            task(context, index, NULL)
            done += 1
            check_signals(region, task_work * workers)
            index = team_claim()
    finally:
        if region.threads > 1:
            team_close(done)
    return 0


_recruiting = threading.Lock()
cdef int _helpers = 0  # the number of helpers that have a seat; the first has seat 1
cdef int _max_threads = TEAM_MAX  # lower once the system has refused a thread
cdef double _latest_call = 0


cdef int recruit(int threads, double work) except -1:
    if threads == 1 or (not follows(work) and work < WAKING):
        return 1
    threads = min(threads, _max_threads)
    if _helpers < threads - 1 and _recruiting.acquire(blocking=False):
        try:
            _start_helpers(threads)
        finally:
            _recruiting.release()
    return min(threads, _helpers + 1)


cdef bint follows(double work) noexcept:
    """Whether a call with this work comes right after another."""
    global _latest_call
    if work < FOLLOWING:
        return False
    cdef double now = wall_seconds(), gap = now - _latest_call
    _latest_call = now
    return gap < GAP_SECONDS + SECONDS_OF_WORK * work


def _start_helpers(int threads):
    """Start helpers until threads - 1 of them have seats, or the system refuses one.

    A helper takes its seat itself, so an interrupt at any point leaves no seat empty.
    """
    global _max_threads
    cdef int seats
    if not team_seat(0):
        raise MemoryError("no helper thread could be started")
    while _helpers < threads - 1:
        seats = _helpers
        seated = threading.Event()
        helper = threading.Thread(target=_help, args=(seated,), name=f"lstm_ext-{seats + 1}", daemon=True)
        try:
            helper.start()
        except RuntimeError:
            _max_threads = seats + 1
            return
        while not seated.wait(1) and helper.is_alive():
            pass
        if _helpers == seats:
            raise MemoryError("no helper thread could be started")


def _help(seated):
    global _helpers
    cdef int index = _helpers + 1
    if index < TEAM_MAX and team_seat(index):
        _helpers = index
        seated.set()
        with nogil:
            team_serve(index)


def _forget_helpers():
    """Forget the helpers in the child of a fork, which has one thread."""
    global _recruiting, _helpers, _max_threads, _forks, _main_thread
    team_forget()
    _recruiting, _helpers, _max_threads = threading.Lock(), 0, TEAM_MAX
    _forks += 1
    _main_thread = PyThread_get_thread_ident()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_helpers)


_held = {}  # from the id of an object to the thread whose call has exclusive use of it


@cython.no_gc
@cython.auto_pickle(False)
cdef class ExclusiveUse:
    """Give one call exclusive use of an object; raise RuntimeError with `message` if another call has it.

    Entering and leaving are compiled code, in which no signal handler runs. After an interrupt just before exit it is
    released when it is freed, so do not bind it to a name.

    nests  whether the thread that has the object may enter again
    """

    cdef object thing
    cdef str message
    cdef bint nests, holds

    def __init__(self, thing, str message, *, bint nests=False):
        self.thing, self.message, self.nests = thing, message, nests

    def __enter__(self):
        thread = PyThread_get_thread_ident()
        holder = _held.get(id(self.thing))
        if holder is None:
            _held[id(self.thing)] = thread
            self.holds = True
        elif holder != thread or not self.nests:
            raise RuntimeError(self.message)

    def __exit__(self, *_):
        self.let_go()

    def __dealloc__(self):
        self.let_go()

    cdef int let_go(self) except -1:
        if self.holds:
            self.holds = False
            _held.pop(id(self.thing), None)
        return 0


# --- for tests of the threads ---


cdef struct Rehearsal:
    Py_ssize_t *done
    int pauses


cdef void rehearse_part(Rehearsal *p, Py_ssize_t index, const void *tag) noexcept nogil:
    team_pause(p.pauses)
    p.done[index] += 1


def _rehearse(int threads, Py_ssize_t[:, ::1] done, int pauses):
    """Run one loop for each row of `done`: each index waits for some pauses and adds 1 to its element.

    For tests. It is here because the helpers and `parallel_for` belong to this module.
    """
    cdef Rehearsal loops[2]
    cdef Rehearsal *p
    cdef Region region
    cdef Py_ssize_t row, count = done.shape[1]
    threads = recruit(threads, 1e9)
    with nogil:
        begin_region(&region, threads)
        try:
            for row in range(done.shape[0]):
                p = &loops[row % 2]
                p.done, p.pauses = &done[row, 0], pauses
                parallel_for(&region, <team_task> rehearse_part, p, count, 1e7 * count)
        finally:
            end_region(&region)


def _adjust(*, bint rests=True, int lateness=0, double signal_seconds=SIGNAL_SECONDS):
    """Set whether helpers rest after a stall, how many pauses late they are, and the seconds between signal checks.

    For tests. It sets variables of this module, so it cannot be elsewhere.
    """
    global _signal_seconds
    team_adjust(rests, lateness)
    _signal_seconds = signal_seconds
