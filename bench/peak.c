/* The peak of one core. Compiled by contestants.py with -O2 -march=native; LANES is the width of a vector in
   floats, BYTES the size of the streamed buffer. */
typedef float vec __attribute__((vector_size(4 * LANES)));

static vec buffer[BYTES / sizeof(vec)];

/* Fused multiply-adds on registers alone: 16 independent chains, more than any core's latency needs. */
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

/* Pages that were never written all share one page of zeros, which would stay in the first-level cache. */
void fill_buffer(void)
{
    for (long k = 0; k < (long)(BYTES / sizeof(vec)); k++)
        buffer[k] = (vec){0} + 1.0f;
}

/* Plain loads of the whole buffer, from start to end; the sum keeps them from being optimised away. */
float stream_buffer(long repeats)
{
    vec part[16], sum = (vec){0};
    for (int j = 0; j < 16; j++)
        part[j] = (vec){0};
    for (long r = 0; r < repeats; r++) {
        for (long k = 0; k + 16 <= (long)(BYTES / sizeof(vec)); k += 16) {
#pragma GCC unroll 16
            for (int j = 0; j < 16; j++)
                part[j] += buffer[k + j];
        }
    }
    for (int j = 0; j < 16; j++)
        sum += part[j];
    return sum[0];
}
