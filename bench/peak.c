/* The rate of fused multiply-adds on registers alone: 16 independent chains, more than any core's latency needs.
   Compiled by compare.py with -O2 -march=native; LANES is the width of one vector in floats. */
typedef float vec __attribute__((vector_size(4 * LANES)));

float multiply_adds(long repeats)
{
    vec chain[16], a = (vec){0} + 0.999f, b = (vec){0} + 0.001f, sum = (vec){0};
    for (int j = 0; j < 16; j++)
        chain[j] = (vec){0} + (float)j;
    for (long r = 0; r < repeats; r++) {
#pragma GCC unroll 16
        for (int j = 0; j < 16; j++)
            chain[j] = chain[j] * a + b;
    }
    for (int j = 0; j < 16; j++)
        sum += chain[j];
    return sum[0];
}
