/* The instruction sets that this build holds, and whether this machine runs them. It asks cpuid and xgetbv itself:
   the compilers' helpers know different sets. */
#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>

extern const kernels kernels_avx512, kernels_avx2, kernels_baseline;
const kernels *const all_kernels[] = {&kernels_avx512, &kernels_avx2, &kernels_baseline, NULL};

#define BIT(word, n) (((word) >> (n)) & 1u)

/* XCR0: which registers the operating system saves. */
static unsigned saved_registers(void)
{
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

int kernels_runnable(const kernels *table)
{
    unsigned a, b, c, d, b7, c7, d7;
    if (table == &kernels_baseline)
        return 1;
    if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || !__get_cpuid_count(7, 0, &a, &b7, &c7, &d7))
        return 0;
    int osxsave = BIT(c, 27), fma = BIT(c, 12), avx = BIT(c, 28), avx2 = BIT(b7, 5);
    if (!osxsave || !fma || !avx || !avx2 || (saved_registers() & 0x06) != 0x06) /* XMM, YMM */
        return 0;
    if (table == &kernels_avx2)
        return 1;
    int foundation = BIT(b7, 16), dq = BIT(b7, 17), bw = BIT(b7, 30), vl = BIT(b7, 31);
    return foundation && dq && bw && vl && (saved_registers() & 0xe6) == 0xe6; /* opmask, ZMM */
}

#elif defined(__aarch64__)

extern const kernels kernels_neon;
const kernels *const all_kernels[] = {&kernels_neon, NULL};

int kernels_runnable(const kernels *table)
{
    (void)table;
    return 1;
}

#else
#error "lstm_ext has kernels for x86-64 and aarch64"
#endif
