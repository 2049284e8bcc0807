/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of the integer graph. What each computes is defined, to the bit, by compress/reference.py; the layers
 * are packed for a core by targets/pack.py.
 *
 * Layout. A tensor (channel, lead, time) is planar: `channel * leads + lead` is its row, a row holds one code per
 * column, a column is a moment in time. Rows lie `pitch` bytes apart. A vector (feature,) is one row of codes for the
 * kernels that take vectors (dense, lookup), and one row per feature and one column for those that take channels
 * (norm): the bytes are the same.
 *
 * Time. Columns are counted from the start of the signal. A view holds the columns first .. end - 1; `data` is column
 * `first` of row 0. A kernel fills all columns of its output view. Of its inputs it reads what it needs; columns in
 * front of `first` and from `end` on count as padding. One definition serves a window (first = 0, end = its length)
 * and an endless signal (the driver sees to it that everything needed is there).
 *
 * No kernel reads or writes outside of its views, its layer and `scratch` (aligned to 8 bytes, as many bytes as the
 * packer asked for). Data may start at any byte; rows are not aligned.
 */
#ifndef ECG_KERNELS_H
#define ECG_KERNELS_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    int8_t *data;
    int32_t pitch;
    int32_t first, end;
} ecg_view;

/* in: as many views as the node has inputs, in the graph's order. */
typedef void ecg_kernel(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch);

/* requantize: clamp(((acc << shift) * mul + 2^31) >> 32), 0 < mul < 2^31 */
typedef struct {
    int32_t bias, mul;
} ecg_scale;

/* conv1d (channel, lead, time) -> (out, lead, column). Column t sees input columns t * stride - pad + (0 .. kernel - 1);
 * padding is 0. Groups: output channel o sees the in / groups channels from (o / (out / groups)) * (in / groups) on. */
typedef struct {
    const void *weight;         /* as the kernel's packer lays it out */
    const ecg_scale *scale;     /* one per output channel */
    const uint8_t *shift;       /* one per output channel; NULL: all 0 */
    uint16_t in, out, leads, groups, kernel, stride, pad;
    uint8_t relu;               /* 1: at least 0 */
} ecg_conv_layer;

/* dense (feature,) -> (out,) */
typedef struct {
    const void *weight;
    const ecg_scale *scale;
    const uint8_t *shift;
    uint16_t in, out;
    uint8_t relu;
} ecg_dense_layer;

/* attention: q, k, v (, q2, k2) -> heads * dv channels. The output may be q's own memory. Keys of query t:
 * GLOBAL all; BAND t - size .. t + size; BLOCK those of t / size * size on, `size` of them; NEIGHBOURHOOD `size` from
 * t - (size - 1) / 2 on, moved inwards at both ends; all of them clipped to the keys that exist. */
enum { ECG_GLOBAL, ECG_BAND, ECG_BLOCK, ECG_NEIGHBOURHOOD };
typedef struct {
    const uint16_t *table;      /* exp, 1024 entries */
    const int32_t *bias;        /* (head, 2 * size - 1), NEIGHBOURHOOD only; NULL: none */
    int32_t score_mul, out_mul, score_mul2, out_mul2;       /* ...2: of the second map */
    uint8_t score_shift, score_shift2, pair, window;        /* pair 1: q2 and k2 are there */
    uint16_t heads, d, dv, leads, size;                     /* d, dv: channels per head of q and k, and of v */
    uint16_t block, paired;     /* attention_dsp: queries it takes at a time, even; keys it keeps paired, a multiple of 4.
                                 * attention_mve: keys it keeps side by side. They decide how much scratch there is. */
} ecg_attention_layer;

/* Elementwise. Extents are those of the output; bit 0, 1, 2 of `repeat` says that the operand has size 1 along channel,
 * lead, time and is repeated there. The output may be the memory of an operand that is not repeated. */
typedef struct {
    int32_t mul[2];             /* add: int16 factors, the second may be negative; mul: mul[0] only */
    uint16_t channels, leads;
    uint8_t repeat[2];
    uint8_t shift;
    uint8_t relu;               /* add only */
} ecg_pair_layer;

typedef struct {
    const int8_t *table;        /* 256 codes: table[x + 128] */
    uint16_t rows;
} ecg_table_layer;

/* maxpool (padding -128) and meanpool (padding 0; requantize(sum)) along time */
typedef struct {
    int32_t mul;
    uint16_t rows, kernel, stride, pad;
    uint8_t shift;
} ecg_pool_layer;

/* max and mean over whole axes (`over`: bit 0 channel, 1 lead, 2 time); the codes left lie in order, without gaps.
 * Without time among the axes, time stays the last axis and `out` is a view of rows; else its only row is the result. */
typedef struct {
    int32_t mul;
    uint16_t channels, leads;
    uint8_t shift, over;
} ecg_reduce_layer;

/* concat: input i contributes count[i] steps along one axis: `axis` 0 channel, 1 lead, 2 time (extents of the output
 * otherwise). requantize(x, mul[i], shift[i]); mul[i] 0 copies. */
typedef struct {
    const int32_t *mul;
    const uint8_t *shift;
    const uint16_t *count;
    uint16_t inputs, channels, leads;
    uint8_t axis;
} ecg_concat_layer;

/* slice along an axis, and the copy of a strided tensor (axis 2, start 0). Extents are those of the input. */
typedef struct {
    uint16_t channels, leads, start, stop;
    uint8_t axis;
} ecg_slice_layer;

/* transpose: output axis i is input axis perm[i]; extents of the input, time given where the signal is a window */
typedef struct {
    uint16_t channels, leads;
    uint8_t perm[3];
} ecg_transpose_layer;

/* norm over channels in groups; every lead and column by itself. May work in place. See compress/reference_norm.py */
typedef struct {
    int64_t eps;
    const int32_t *mul, *bias;  /* one per channel */
    uint16_t channels, leads, groups;
    uint8_t rms;
} ecg_norm_layer;

/* lstm over (step, feature): rows are steps, columns features. See compress/reference_lstm.py */
typedef struct {
    const int8_t *weight_x, *weight_h;                      /* (4 * hidden, features), (4 * hidden, hidden) */
    const int32_t *mul_x, *mul_h, *bias;                    /* 4 * hidden each */
    const uint16_t *table;                                  /* sigmoid, 1024 entries */
    uint16_t steps, features, hidden;
    uint8_t sequence;           /* 1: every h, as (step, hidden); 0: the last one */
} ecg_lstm_layer;

/* lookup (1,) -> (width,): row min(max(x - low, 0), entries - 1) */
typedef struct {
    const int8_t *table;
    int16_t low;
    uint16_t entries, width;
} ecg_lookup_layer;

/* Every kernel has a number that never changes, so that a model's data can be replaced without its firmware. */
enum {
#define ECG_KERNEL(number, name) ECG_KERNEL_##name = number,
#include "ecg_kernels.def"
#undef ECG_KERNEL
    ECG_KERNELS = 64
};
#ifdef __cplusplus
extern "C" {
#endif

#define ECG_KERNEL(number, name) extern ecg_kernel ecg_##name;
#include "ecg_kernels.def"
#undef ECG_KERNEL

#ifdef __cplusplus
}
#endif

#endif
