/* The table of leaf kernels: one for each instruction set; float and double come from one source.

   Every output element is one chain of fused multiply-adds in the order written in its contract, so the bits do not
   depend on the instruction set, on the number of rows, or on how a sum is divided into calls. (The baseline has no
   fused multiply-add and agrees to rounding.) Kernels allocate nothing. Inputs do not overlap outputs unless a contract
   says so. Strides, and the strides of rows (ld*), count elements.

   H hidden_dim, I input_dim, V lanes of one vector, gates in the order i, f, g, o. */
#ifndef LSTM_EXT_KERNELS_H
#define LSTM_EXT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "activations.h"
#include "losses.h"
#include "optimizers.h"

/* Panels and packed blocks are at most this many vectors wide: the four gates of V units. */
#define TILE_VECTORS 4

/* Long sums across elements go in blocks of this length; the blocks' sums are added in order. */
#define SUM_BLOCK 4096

/* The maximum size in bytes of the packed weights that lanes_forward takes: every group of V sequences reads them
   again. */
#define LANES_BYTES 131072

/* lanes_forward transposes the inputs of several steps at once, up to this many columns. */
#define LANES_COLUMNS 64

/* The vectors of scratch that lanes_forward and lanes_backward need. Threads may have small stacks, so large buffers
   are in the scratch. */
static inline ptrdiff_t lanes_scratch(ptrdiff_t input_dim, ptrdiff_t hidden_dim)
{
    const ptrdiff_t transposed = input_dim > LANES_COLUMNS ? input_dim : LANES_COLUMNS;
    const ptrdiff_t forward = transposed + 2 * (hidden_dim + input_dim + 4), backward = 6 * hidden_dim;
    return forward > backward ? forward : backward;
}

/* The options of a cell. A plain cell has 4 gates, GATE_SIGMOID, CELL_TANH, clip infinity, zoneout 0 and NULLs. Arrays
   hold the table's type. */
typedef struct {
    int gates;              /* G: 4 (i, f, g, o) or 3 (i, g, o; f = 1 - i) */
    int gate_activation;    /* gate(z), of i, f and o */
    int cell_activation;    /* act(z), of g and c */
    double clip;            /* of c to [-clip, clip] */
    double zoneout;         /* the weight of C_{t-1} in C_t where there is no mask */
    const void *peepholes;  /* (G - 1, H): p_i, [p_f,] p_o; or NULL */
    const void *gain_C;     /* (H), of the layer norm of c; or NULL: n(c) = c */
    const void *shift_C;    /* (H); with gain_C only */
} cell_options;

#define DECLARE_KERNELS(table, real)                                                                        \
    typedef struct {                                                                                        \
        ptrdiff_t lanes;     /* V */                                                                        \
        ptrdiff_t tile_rows; /* maximum of `rows` in matmul, outer and cell_forward */                      \
                                                                                                            \
        /* y[j] = f(x[j]), j < n; y may be x. */                                                            \
        void (*sigmoid)(ptrdiff_t n, const real *x, real *y);                                               \
        void (*tanh)(ptrdiff_t n, const real *x, real *y);                                                  \
                                                                                                            \
        /* C[r][j] = start[r][j] + sum_k A[r][k] * panel[k][j], k ascending; r < rows, j < columns.         \
           panel    (depth, ld_panel), readable for columns rounded up to whole vectors                     \
           start    (rows, columns), stride ld_start; stride 0 repeats one row; may be C                    \
           ahead    a hint: meanwhile `depth` cache lines are prefetched from here */                       \
        void (*matmul)(ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t depth, const real *A, ptrdiff_t lda,    \
                       const real *panel, ptrdiff_t ld_panel, const real *start, ptrdiff_t ld_start,        \
                       real *C, ptrdiff_t ldc, const real *ahead);                                          \
                                                                                                            \
        /* The same with A transposed: C[r][j] = start[r][j] + sum_k A[k][r] * panel[k][j]. */              \
        void (*outer)(ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t depth, const real *A, ptrdiff_t lda,     \
                      const real *panel, ptrdiff_t ld_panel, const real *start, ptrdiff_t ld_start,         \
                      real *C, ptrdiff_t ldc);                                                              \
                                                                                                            \
        /* B[k][j] = A[j][k] for j < rows, 0 for rows <= j < V; rows <= V, k < depth.                       \
           A        (rows, depth), stride lda                                                               \
           B        (depth, V), stride ldb */                                                               \
        void (*transpose)(ptrdiff_t rows, ptrdiff_t depth, const real *A, ptrdiff_t lda, real *B,           \
                          ptrdiff_t ldb);                                                                   \
                                                                                                            \
        /* One step of the cell for `units` <= V units of `rows` sequences, or up to 2 V units of one.      \
               z = b + W_x x + W_h h_prev;   C = f * C_prev + i * g;   h = o * tanh(C)                      \
           hx       (rows, ld_hx)  [h_prev (H) | x (I)]                                                     \
           block    (1 + I + H, 4, V)  bias, W_x, W_h of these units; lanes past `units` hold zeros. The    \
                    block of the next V units follows.                                                      \
           C_prev   (rows, H) and C (rows, H), at the first unit; C may be C_prev                           \
           h        (rows, H), stride ld_hx, at the first unit, not in the rows of hx                       \
           gates    (rows, 4, H) at the first unit, or NULL: i, f, g, o for cell_backward                   \
           ahead    a hint: meanwhile I + H cache lines are prefetched from here */                         \
        void (*cell_forward)(ptrdiff_t rows, ptrdiff_t units, ptrdiff_t input_dim, ptrdiff_t hidden_dim,    \
                             const real *hx, ptrdiff_t ld_hx, const real *block, const real *C_prev,        \
                             real *C, real *h, real *gates, const real *ahead);                             \
                                                                                                            \
        /* The gates' part of one step backward for one sequence, elementwise.                              \
           gates (4, H); C_prev, C, dh (H);  dC (H) in: dL/dC_t, out: dL/dC_{t-1};  dz (4, H) out */        \
        void (*cell_backward)(ptrdiff_t hidden_dim, const real *gates, const real *C_prev, const real *C,   \
                              const real *dh, real *dC, real *dz);                                          \
                                                                                                            \
        /* `steps` steps of cell_forward for `rows` <= V sequences, one in each lane.                       \
           x        x_0 of sequence l is at x[first[l]]; stride x_step from x_t to x_{t+1}                  \
           packed   all blocks of cell_forward, at most LANES_BYTES                                         \
           h_prev, h   (rows, H), stride ld_h; h out, may be h_prev                                         \
           hx       (steps, rows) rows [h_{t-1} | x_t], strides hx_step and ld_h, out, or NULL; each row is \
                    written up to a multiple of 16 bytes                                                    \
           C        (steps + 1, H, rows), stride C_step: slot 0 in, the others out; C_step may be 0         \
           gates    (steps, H, 4, rows), stride 4 C_step: i, f, g, o for lanes_backward; or NULL            \
           scratch  (lanes_scratch(I, H), V) */                                                             \
        void (*lanes_forward)(ptrdiff_t steps, ptrdiff_t rows, ptrdiff_t input_dim, ptrdiff_t hidden_dim,   \
                              const real *x, const ptrdiff_t *first, ptrdiff_t x_step,                      \
                              const real *packed, const real *h_prev, real *h, ptrdiff_t ld_h, real *hx,    \
                              ptrdiff_t hx_step, real *C, ptrdiff_t C_step, real *gates, real *scratch);    \
                                                                                                            \
        /* `steps` steps backward, from the last to the first: cell_backward, then                          \
           dh_{t-1} = dH_{t-1} + dz W_h.                                                                    \
           gates, C  as lanes_forward wrote them, at the first of these steps                               \
           panels   W_h (4H, H): for each 4 V columns an array (4H, width), as matmul takes it              \
           dH       (steps, rows, H) at the first step, strides dH_step and ld_dH; or NULL. h_{-1} has none \
           begins, ends   whether the first step is the sequences' first, the last step their last          \
           dh, dC   in: after the last step; (rows, H) if it `ends`, else (H, rows) from the previous call  \
                    out: before the first step; (rows, H) if it `begins`, else (H, rows)                    \
           dz       (steps, rows, 4H), strides dz_step and ld_dz, the last step first, out                  \
           scratch  (lanes_scratch(I, H), V) for any I */                                                   \
        void (*lanes_backward)(ptrdiff_t steps, ptrdiff_t rows, ptrdiff_t hidden_dim, const real *gates,    \
                               const real *C, ptrdiff_t C_step, const real *panels, const real *dH,         \
                               ptrdiff_t ld_dH, ptrdiff_t dH_step, int begins, int ends, real *dh,          \
                               real *dC, real *dz, ptrdiff_t ld_dz, ptrdiff_t dz_step, real *scratch);      \
                                                                                                            \
        /* The elementwise part of one step of a cell with options, for one sequence.                       \
               i, f = gate(z_i + p_i C_prev), gate(z_f + p_f C_prev), or f = 1 - i;   g = act(z_g)          \
               c = clip(f C_prev + i g);   o = gate(z_o + p_o c);   m = o act(n(c))                         \
               C = zone C_prev + (1 - zone) c                                                               \
           z        (G, H) in: b + W_x x + W_h h_prev; out: i, [f,] g, o                                    \
           C_prev   (H) and C (H); C may be C_prev                                                          \
           zone     (H) of 0 and 1, or NULL: the constant zoneout                                           \
           m        (H) out, not C */                                                                       \
        void (*cell_step)(const cell_options *options, ptrdiff_t hidden_dim, real *z, const real *C_prev,   \
                          const real *zone, real *C, real *m);                                              \
                                                                                                            \
        /* The same step backward.                                                                          \
           gates    (G, H), z as cell_step wrote it; C_prev and zone (H) as cell_step took them             \
           dm       (H) dL/dm                                                                               \
           dC       (H) in: dL/dC; out: dL/dC_prev, except by way of W_h h_prev                             \
           dz       (G, H) out                                                                              \
           c        (H) out: c, for the gradient of p_o                                                     \
           dn       (H) out: dL/dn(c), for the gradients of gain_C and shift_C. NULL without them */        \
        void (*cell_step_backward)(const cell_options *options, ptrdiff_t hidden_dim, const real *gates,    \
                                   const real *C_prev, const real *zone, const real *dm, real *dC,          \
                                   real *dz, real *c, real *dn);                                            \
                                                                                                            \
        /* xhat = (x - mean) * rstd over n elements; returns rstd = 1 / sqrt(var + 1e-5), var biased. xhat  \
           may be x. Sums are in double: blocks of SUM_BLOCK, each in 16 lanes, all added in order. */      \
        double (*normalize)(ptrdiff_t n, const real *x, real *xhat);                                        \
                                                                                                            \
        /* dx = rstd * (d - mean(d) - xhat * mean(d * xhat)),  d = gain * dy; same sums; dx may be dy. */   \
        void (*normalize_backward)(ptrdiff_t n, const real *xhat, double rstd, const real *gain,            \
                                   const real *dy, real *dx);                                               \
                                                                                                            \
        /* y[j] = p[j] a[j] + (1 - p[j]) b[j], p[j] = mask[j], or p if mask is NULL; y may be a or b. */    \
        void (*blend)(ptrdiff_t n, const real *mask, real p, const real *a, const real *b, real *y);        \
                                                                                                            \
        /* y[j] = word j < threshold ? dropped : kept. Word j is word j mod 4 of Philox 4x32-10's block     \
           of the counter (j / 4, counter[0], counter[1], counter[2]).                                      \
           key      (2);  counter (3): row, step, stream */                                                 \
        void (*mask)(ptrdiff_t n, const uint32_t *key, const uint32_t *counter, uint32_t threshold,         \
                     real dropped, real kept, real *y);                                                     \
                                                                                                            \
        /* y[j] = word j < threshold ? 0 : scale * x[j], the same words; y may be x. */                     \
        void (*dropout)(ptrdiff_t n, const uint32_t *key, const uint32_t *counter, uint32_t threshold,      \
                        real scale, const real *x, real *y);                                                \
                                                                                                            \
        /* Whether n numbers hold neither NaN nor Inf. */                                                   \
        int (*are_finite)(ptrdiff_t n, const real *x);                                                      \
                                                                                                            \
        /* sum_j x[j]^2 in double, in 16 lanes (j mod 16) added in their order; n <= SUM_BLOCK. */          \
        double (*sum_of_squares)(ptrdiff_t n, const real *x);                                               \
                                                                                                            \
        /* losses[kind]: returns the loss of one row; dy (outputs) = scale * its derivative by y. The sum   \
           over targets is in double, in 16 lanes as above. */                                              \
        double (*losses[LOSS_KINDS])(const loss_row *row, const real *y, real *dy);                         \
                                                                                                            \
        /* updates[kind]: one step of an optimizer on n parameters; moments (MAX_MOMENTS) pointers, NULL    \
           for those that are not kept. */                                                                  \
        void (*updates[OPTIMIZER_KINDS])(const update_step *step, ptrdiff_t n, real *parameters,            \
                                         const real *gradient, real *const *moments);                       \
    } table

DECLARE_KERNELS(kernels_float, float);
DECLARE_KERNELS(kernels_double, double);

typedef struct {
    const char *name;
    const kernels_float *f32;
    const kernels_double *f64;
} kernels;

/* The tables of the sets in this build, the widest first, with a NULL at the end; whether this machine runs one. */
extern const kernels *const all_kernels[];
int kernels_runnable(const kernels *table);

#endif
