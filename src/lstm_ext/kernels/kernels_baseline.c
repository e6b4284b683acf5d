/* The plain x86-64 build: SSE2, no fused multiply-add. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <stddef.h>
#define ISA baseline
#define ISA_X86
#define ISA_HAS_FMA 0
#define X86_PREFIX _mm_
#define VECTOR_BYTES 16
#define TILE_ROWS 2
#include "kernels_isa.h"
#endif
