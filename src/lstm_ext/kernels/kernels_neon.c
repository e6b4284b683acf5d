/* The NEON build: every aarch64 has it. */
#if defined(__aarch64__)
#include <arm_neon.h>
#include <stddef.h>
#define ISA neon
#define ISA_NEON
#define VECTOR_BYTES 16
#define TILE_ROWS 6
#include "kernels_isa.h"
#endif
