#include <Python.h>
#include <pythread.h>
#include <stdint.h>
#include <string.h>

#if defined(__linux__)
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "runtime.h"
#include "team.h"

#define OWN_LINE __attribute__((aligned(CACHE_LINE)))
#define PAUSES 1000 /* 20 to 40 us: the time that a worker spins before it sleeps */

/* In seconds: the sleep of the caller from which it counts as a stall, and the helpers' rest after one, which doubles
   up to the longest while stalls follow one another. */
#define STALL 3e-4
#define REST 5e-3
#define LONGEST_REST 0.2

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("isb" : : : "memory")
#else
#define PAUSE() (void)0
#endif

typedef struct {
    uint64_t word OWN_LINE; /* generation : 24 bits, next : 20, end : 20 */
} range;

/* Where one worker waits. Its lock is held except while the worker is being woken. */
typedef struct {
    int asleep OWN_LINE;
    int thread; /* a helper's, for the system */
    PyThread_type_lock lock;
} seat;

static struct {
    uint64_t generation OWN_LINE; /* counts the loops */
    int workers;
    team_task task;
    void *context;
    uint64_t remaining OWN_LINE; /* indices that nobody has run */
    int taken OWN_LINE;
    int caller_cpu;
    double rest, rest_ends, looked; /* these belong to the thread that has the helpers */
    long preemptions;
    range ranges[TEAM_MAX];
    seat seats[TEAM_MAX];
} team;

/* For tests: whether the helpers never rest, and how late each comes to a loop. */
static int restless, lateness;

#define GET(p) __atomic_load_n(p, __ATOMIC_RELAXED)
#define PUT(p, x) __atomic_store_n(p, x, __ATOMIC_RELAXED)
#define LOAD(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define STORE(p, x) __atomic_store_n(p, x, __ATOMIC_SEQ_CST)
#define EXCHANGE(p, x) __atomic_exchange_n(p, x, __ATOMIC_SEQ_CST)

#define INDEX_BITS 20
#define NEXT_ONE ((uint64_t)1 << INDEX_BITS)
#define GENERATION(word) ((word) >> 2 * INDEX_BITS)
#define NEXT(word) ((ptrdiff_t)((word) >> INDEX_BITS & TEAM_MAX_COUNT))
#define END(word) ((ptrdiff_t)((word)&TEAM_MAX_COUNT))

static uint64_t make_range(uint64_t generation, ptrdiff_t next, ptrdiff_t end)
{
    return generation << 2 * INDEX_BITS | (uint64_t)next << INDEX_BITS | (uint64_t)end;
}

void team_pause(int count)
{
    for (; count > 0; count--)
        PAUSE();
}

/* Wait until *word is no longer `old`; return the seconds asleep. `wake` must follow the change. */
static double await_change(seat *own, const uint64_t *word, uint64_t old)
{
    for (int k = 0; k < PAUSES; k++) {
        if (LOAD(word) != old)
            return 0;
        PAUSE();
    }
    double start = wall_seconds();
    STORE(&own->asleep, 1);
    if (__atomic_load_n(word, __ATOMIC_SEQ_CST) == old || !EXCHANGE(&own->asleep, 0))
        PyThread_acquire_lock(own->lock, WAIT_LOCK); /* unless it changed and nobody is waking us */
    return wall_seconds() - start;
}

static void wake(seat *other)
{
    if (__atomic_load_n(&other->asleep, __ATOMIC_SEQ_CST) && EXCHANGE(&other->asleep, 0))
        PyThread_release_lock(other->lock);
}

#if defined(__linux__)
/* Some operating systems wake a helper on the caller's processor and leave both there while others are idle, so helpers
   keep off it. */
static void keep_helpers_off_this_cpu(void)
{
    int cpu = sched_getcpu();
    cpu_set_t others;
    if (cpu == GET(&team.caller_cpu) || cpu < 0 || cpu >= CPU_SETSIZE || sched_getaffinity(0, sizeof others, &others) != 0)
        return;
    PUT(&team.caller_cpu, cpu);
    CPU_CLR(cpu, &others);
    for (int v = 1; CPU_COUNT(&others) > 0 && v < TEAM_MAX; v++)
        if (LOAD(&team.seats[v].thread) != 0)
            sched_setaffinity(team.seats[v].thread, sizeof others, &others);
}

static int current_thread(void) { return (int)syscall(SYS_gettid); }

/* Whether another process took the caller's processor in the last milliseconds. The system moves a
   thread that runs alone to another one sooner. */
static int was_preempted(void)
{
    double now = wall_seconds(), elapsed = now - team.looked;
    struct rusage usage;
    if (elapsed < 2e-3 || getrusage(RUSAGE_THREAD, &usage) != 0)
        return 0;
    long more = usage.ru_nivcsw - team.preemptions;
    team.looked = now;
    team.preemptions = usage.ru_nivcsw;
    return more > 0 && elapsed < 2e-2;
}
#else
static int was_preempted(void) { return 0; }
static void keep_helpers_off_this_cpu(void) {}
static int current_thread(void) { return 0; }
#endif

static ptrdiff_t claim(uint64_t generation, int workers, int worker)
{
    for (int v = 0; v < workers; v++) {
        uint64_t *range = &team.ranges[(worker + v) % workers].word, word = LOAD(range);
        while (GENERATION(word) == (generation & 0xffffff) && NEXT(word) < END(word))
            if (__atomic_compare_exchange_n(range, &word, word + NEXT_ONE, 1, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
                return NEXT(word);
    }
    return -1;
}

int team_take(void) { return !EXCHANGE(&team.taken, 1); }

void team_give_back(void) { STORE(&team.taken, 0); }

int team_rests(void) { return team.rest_ends > 0 && wall_seconds() < team.rest_ends; }

static void begin_rest(void)
{
    if (GET(&restless))
        return;
    double now = wall_seconds();
    team.rest = now - team.rest_ends < team.rest ? 2 * team.rest : REST;
    team.rest = team.rest < LONGEST_REST ? team.rest : LONGEST_REST;
    team.rest_ends = now + team.rest;
}

void team_open(int workers, ptrdiff_t count, team_task task, void *context)
{
    uint64_t generation = team.generation + 1;
    PUT(&team.workers, workers);
    PUT(&team.task, task);
    PUT(&team.context, context);
    STORE(&team.remaining, (uint64_t)count);
    for (int v = 0; v < workers; v++)
        __atomic_store_n(&team.ranges[v].word, make_range(generation, count * v / workers, count * (v + 1) / workers),
                         __ATOMIC_RELEASE);
    keep_helpers_off_this_cpu();
    STORE(&team.generation, generation);
    for (int v = 1; v < workers; v++)
        wake(&team.seats[v]);
}

ptrdiff_t team_claim(void) { return claim(team.generation, team.workers, 0); }

void team_close(ptrdiff_t done)
{
    while (team_claim() >= 0)
        done++; /* dropped */
    uint64_t remaining = __atomic_sub_fetch(&team.remaining, (uint64_t)done, __ATOMIC_ACQ_REL);
    double asleep = 0;
    while (remaining > 0) {
        asleep += await_change(&team.seats[0], &team.remaining, remaining);
        remaining = LOAD(&team.remaining);
    }
    if (asleep > STALL || was_preempted())
        begin_rest();
}

/* A helper may read a loop that is over: it can no longer claim anything then. While it can, the caller waits. */
static void help(int worker, uint64_t generation)
{
    int workers = GET(&team.workers);
    team_task task = GET(&team.task);
    void *context = GET(&team.context);
    uint64_t done = 0;
    if (worker >= workers)
        return;
    team_pause(GET(&lateness));
    for (ptrdiff_t index; (index = claim(generation, workers, worker)) >= 0; done++)
        task(context, index, NULL);
    if (done > 0 && __atomic_sub_fetch(&team.remaining, done, __ATOMIC_SEQ_CST) == 0)
        wake(&team.seats[0]);
}

int team_seat(int index)
{
    seat *own = &team.seats[index];
    if (own->lock == NULL && (own->lock = PyThread_allocate_lock()) != NULL)
        PyThread_acquire_lock(own->lock, WAIT_LOCK);
    return own->lock != NULL;
}

void team_serve(int index)
{
    denormals_flush();
    STORE(&team.seats[index].thread, current_thread());
    PUT(&team.caller_cpu, -1); /* this helper may still be on it */
    for (uint64_t seen = 0;;) {
        await_change(&team.seats[index], &team.generation, seen);
        seen = LOAD(&team.generation);
        help(index, seen);
    }
}

void team_adjust(int rests, int late)
{
    PUT(&restless, !rests);
    PUT(&lateness, late);
}

void team_forget(void) { memset(&team, 0, sizeof team); /* locks may be held by threads that are gone */ }
