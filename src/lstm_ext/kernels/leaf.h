/* Every leaf kernel for one type, and their table: kernels_isa.h includes this file with REAL_IS_DOUBLE 0, then 1. */
#define NAME(name) PASTE(name, PASTE(_f, REAL_BITS))
#if REAL_IS_DOUBLE
#define REAL_BITS 64
#define TABLE kernels_double
#else
#define REAL_BITS 32
#define TABLE kernels_float
#endif

#include "simd.h"
#include "activations.h"
#include "tile.h"
#include "lanes.h"
#include "general_cell.h"
#include "losses.h"
#include "masks.h"
#include "optimizers.h"
#include "reductions.h"

#define LOSS_ENTRY(kind, name, takes_labels) [LOSS_##kind] = NAME(name##_loss),
#define UPDATE_ENTRY(kind, name, min_moments, max_moments, powers) [OPTIMIZER_##kind] = NAME(name##_update),

static const TABLE NAME(table) = {
    .lanes = V,
    .tile_rows = TILE_ROWS,
    .sigmoid = NAME(sigmoid),
    .tanh = NAME(tanh),
    .matmul = NAME(matmul),
    .outer = NAME(outer),
    .transpose = NAME(transpose),
    .cell_forward = NAME(cell_forward),
    .cell_backward = NAME(cell_backward),
    .lanes_forward = NAME(lanes_forward),
    .lanes_backward = NAME(lanes_backward),
    .cell_step = NAME(cell_step),
    .cell_step_backward = NAME(cell_step_backward),
    .normalize = NAME(normalize),
    .normalize_backward = NAME(normalize_backward),
    .blend = NAME(blend),
    .mask = NAME(mask),
    .dropout = NAME(dropout),
    .are_finite = NAME(are_finite),
    .sum_of_squares = NAME(sum_of_squares),
    .losses = {EACH_LOSS(LOSS_ENTRY)},
    .updates = {EACH_OPTIMIZER(UPDATE_ENTRY)},
};

#undef NAME
#undef REAL_BITS
#undef TABLE
#undef real
#undef bits
#undef vec
#undef bitvec
#undef V
#undef FMA
#undef K
#undef EACH_VECTOR
#undef LANES_2
#undef LANES_4
#undef LANES_8
#undef LANES_16
#undef INTERLEAVE
#undef EACH
#undef LOAD_ROWS
#undef STORE_ROWS
#undef MULTIPLY_ADD
#undef CASE_ROWS
#undef MATMUL_BODY
#undef OUTER_BODY
#undef CELL_CASE
#undef ROWS_AHEAD
#undef SQUARE
#undef SHUFFLE_SQUARE
#undef LANES_TILE
#undef LANES_MULTIPLY_ADD
#undef square_row
#undef LOAD_ROW
#undef STORE_ROW
#undef LANES
#undef longs
#undef D
#undef doubles
#undef SUM_OF
#undef WHERE
#undef PAIRS
#undef BLOCK_ORDER
#undef SHUFFLE_LONGS
#undef WORD_VECTORS
#undef EACH_WORDS
#undef LOSS_ENTRY
#undef UPDATE_ENTRY
