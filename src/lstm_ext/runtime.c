#include "runtime.h"

#include <time.h>

const float zeros_f32[64] = {0};
const double zeros_f64[64] = {0};

#if defined(__x86_64__)
#include <immintrin.h>

#define FLUSH_TO_ZERO 0x8000u
#define DENORMALS_ARE_ZERO 0x0040u

unsigned long long denormals_flush(void)
{
    unsigned state = _mm_getcsr();
    _mm_setcsr(state | FLUSH_TO_ZERO | DENORMALS_ARE_ZERO);
    return state;
}

void denormals_restore(unsigned long long state) { _mm_setcsr((unsigned)state); }

#elif defined(__aarch64__)

#define FLUSH_TO_ZERO (1ULL << 24)

unsigned long long denormals_flush(void)
{
    unsigned long long state;
    __asm__ volatile("mrs %0, fpcr" : "=r"(state));
    __asm__ volatile("msr fpcr, %0" : : "r"(state | FLUSH_TO_ZERO));
    return state;
}

void denormals_restore(unsigned long long state) { __asm__ volatile("msr fpcr, %0" : : "r"(state)); }

#endif

double wall_seconds(void)
{
    struct timespec now;
#if defined(CLOCK_MONOTONIC)
    clock_gettime(CLOCK_MONOTONIC, &now);
#else
    timespec_get(&now, TIME_UTC);
#endif
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}
