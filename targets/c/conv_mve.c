/* SPDX-License-Identifier: Apache-2.0
 *
 * Convolution with the vectors of the Cortex-M55 (MVE): one instruction multiplies and sums 16 codes. */
#include "ecg_fixed.h"
#include "ecg_kernels.h"

#if defined(__ARM_FEATURE_MVE)
#include <arm_mve.h>

#define NOINLINE __attribute__((noinline))      /* or the compiler's registers run out */
#define HIDE(pointer) __asm__("" : "+r"(pointer))       /* the compiler forgets where it points */

enum {
    LANES = 16,                 /* codes of a vector */
    COLUMNS = 16,               /* output columns whose input is transposed at a time */
    QUAD = 4                    /* output columns that are requantized together */
};

/* What a block of output columns needs. x: vectors [quad][tap / 16][column % 4][tap % 16], 0 behind the
 * last tap; weight: rows of `taps`, with anything behind the last; to: the first channel's row at the
 * first column, `rows` bytes to the next channel's. */
typedef struct {
    const int8_t *x, *weight;
    const ecg_scale *scale;
    int8_t *to;
    int32_t channels, columns, taps, rows;
} mve_block;

/* COLUMNS codes from column `start` of a row on, where `at` points, `stride` columns apart; 0 where there
 * are none */
static NOINLINE int8x16_t edge(const ecg_view *in, const int8_t *at, int32_t start, int32_t stride,
                               uint8x16_t steps)
{
    int32_t low = in->first - start, high = in->end - start;
    mve_pred16_t there;

    low = low > 0 ? (low + stride - 1) / stride : 0;
    high = high > 0 ? (high + stride - 1) / stride : 0;
    there = (mve_pred16_t)(vctp8q((uint32_t)high) & ~vctp8q((uint32_t)low));
    return vldrbq_gather_offset_z_s8(at, steps, there);
}

/* Transpose the input of COLUMNS output columns, the first of which meets input column `start` with its
 * first tap. quad: bytes from one quad of columns to the next. */
static NOINLINE void transpose(const ecg_conv_layer *l, const ecg_view *in, const int8_t *row, int32_t start,
                               int8_t *half, int8_t *x, int32_t quad)
{
    int32_t kernel = l->kernel, stride = l->stride, taps = l->in / l->groups * kernel;
    int32_t rows = in->pitch * l->leads, k = 0;
    uint8x16_t steps = vmulq_n_u8(vidupq_n_u8(0, 1), (uint8_t)stride);
    int inside = start >= in->first && start + (COLUMNS - 1) * stride + kernel <= in->end;

    row += start - in->first;
    for (; taps > 0; taps -= LANES, x += QUAD * LANES) {
        int32_t some = taps < LANES ? taps : LANES, i;
        int8_t *to = half;

        if (inside && kernel == 1 && stride == 1) {         /* one tap's codes after the other */
            for (i = some; i > 0; i--, to += COLUMNS, row += rows)
                vstrbq_s8(to, vldrbq_s8(row));
        } else {
            for (i = some; i > 0; i--, to += COLUMNS) {
                vstrbq_s8(to, inside ? vldrbq_gather_offset_s8(row + k, steps)
                                     : edge(in, row + k, start + k, stride, steps));
                if (++k == kernel) {
                    k = 0;
                    row += rows;
                }
            }
        }
        for (i = LANES - some; i > 0; i--, to += COLUMNS)
            vstrbq_s8(to, vdupq_n_s8(0));
        to = half;                          /* four taps' codes of each column */
        for (i = LANES / QUAD; i > 0; i--, to += QUAD * COLUMNS) {
            int8x16x4_t four = {{vldrbq_s8(to), vldrbq_s8(to + COLUMNS), vldrbq_s8(to + 2 * COLUMNS),
                                 vldrbq_s8(to + 3 * COLUMNS)}};

            vst4q_s8(to, four);
        }
        to = x;                             /* 16 taps' codes of each column */
        for (int8_t *from = half; from < half + QUAD * LANES; from += LANES, to += quad) {
            int8x16_t a = vldrbq_s8(from), b = vldrbq_s8(from + QUAD * COLUMNS);
            int8x16_t c = vldrbq_s8(from + 2 * QUAD * COLUMNS), d = vldrbq_s8(from + 3 * QUAD * COLUMNS);
            int32x4x4_t four = {{vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b), vreinterpretq_s32_s8(c),
                                 vreinterpretq_s32_s8(d)}};
            int8_t *at = to;

            HIDE(at);       /* or gcc 12 steps on by a register, which the last store cannot */
            vst4q_s32((int32_t *)(void *)at, four);
        }
    }
}

/* Requantize four columns of two channels: the first one's codes lie in byte 0 of each word, the other's
 * in byte 2. */
static inline int32x4_t requantize(const int32_t *a, const int32_t *b, int32_t bias0, int32_t bias1,
                                   int32x4_t mul0, int32x4_t mul1, const int relu)
{
    int32x4_t sum0 = {a[0], a[1], a[2], a[3]}, sum1 = {b[0], b[1], b[2], b[3]};
    int16x8_t both;
    int8x16_t code;

    sum0 = vrmulhq_s32(vaddq_n_s32(sum0, bias0), mul0);
    sum1 = vrmulhq_s32(vaddq_n_s32(sum1, bias1), mul1);
    both = vqmovntq_s32(vqmovnbq_s32(vreinterpretq_s16_s32(sum0), sum0), sum1);
    code = vqmovnbq_s16(vreinterpretq_s8_s16(both), both);
    return relu ? vreinterpretq_s32_u8(vqshluq_n_s8(code, 0)) : vreinterpretq_s32_s8(code);
}

/* Up to 32 taps: the weights of two channels stay in registers. vectors: 1 or 2 for each row. */
static inline void few_taps(const mve_block *b, const int32_t vectors, const int relu)
{
    const int8_t *weight = b->weight;
    const ecg_scale *scale = b->scale;
    int8_t *to = b->to;

    for (int32_t left = b->channels; left > 0; left -= 2) {
        int32_t other = left > 1;               /* an odd last channel is computed twice */
        const int8_t *x = b->x, *next = weight + other * b->taps;
        int8_t *to0 = to, *to1 = to + other * b->rows;
        int32_t bias0 = scale[0].bias, bias1 = scale[other].bias;
        int32x4_t mul0 = vdupq_n_s32(scale[0].mul), mul1 = vdupq_n_s32(scale[other].mul);
        int8x16_t w0 = vldrbq_s8(weight), w1 = vldrbq_s8(next), w2 = w0, w3 = w1;

        if (vectors > 1) {
            w2 = vldrbq_s8(weight + LANES);
            w3 = vldrbq_s8(next + LANES);
        }
        for (int32_t i = b->columns / QUAD; i > 0; i--) {
            int32_t sum0[QUAD], sum1[QUAD];
            int32x4_t code;

#pragma GCC unroll 4
            for (int32_t j = 0; j < QUAD; j++) {
                int8x16_t v = vldrbq_s8(x + j * LANES);

                sum0[j] = vmladavq_s8(v, w0);
                sum1[j] = vmladavq_s8(v, w1);
                if (vectors > 1) {
                    v = vldrbq_s8(x + (QUAD + j) * LANES);
                    sum0[j] = vmladavaq_s8(sum0[j], v, w2);
                    sum1[j] = vmladavaq_s8(sum1[j], v, w3);
                }
            }
            code = requantize(sum0, sum1, bias0, bias1, mul0, mul1, relu);
            vstrbq_s32(to0, code);
            vstrbq_s32(to1, vshrq_n_s32(code, 16));
            x += vectors * QUAD * LANES;
            to0 += QUAD;
            to1 += QUAD;
        }
        weight += 2 * b->taps;
        scale += 2;
        to += 2 * b->rows;
    }
}

/* Any number of taps: the eight sums of a quad and two channels stay in registers. */
static inline void many_taps(const mve_block *b, const int relu)
{
    const int8_t *weight = b->weight;
    const ecg_scale *scale = b->scale;
    int8_t *to = b->to;
    int32_t taps = b->taps, rows = b->rows, quads = b->columns / QUAD;
    int32_t quad = (taps + LANES - 1) / LANES * QUAD * LANES;

    for (int32_t left = b->channels; left > 0; left -= 2, weight += 2 * taps, scale += 2, to += 2 * rows) {
        int32_t other = left > 1;
        const int8_t *x = b->x;
        int8_t *to0 = to, *to1 = to + other * rows;
        int32_t bias0 = scale[0].bias, bias1 = scale[other].bias;
        int32x4_t mul0 = vdupq_n_s32(scale[0].mul), mul1 = vdupq_n_s32(scale[other].mul);

        for (int32_t i = quads; i > 0; i--) {
            const int8_t *weight0 = weight, *weight1 = weight + other * taps;
            int32_t sum0[QUAD] = {0, 0, 0, 0}, sum1[QUAD] = {0, 0, 0, 0};
            int32x4_t code;

            for (const int8_t *end = x + quad; x != end; x += QUAD * LANES) {
                int8x16_t w0 = vldrbq_s8(weight0), w1 = vldrbq_s8(weight1);

#pragma GCC unroll 4
                for (int32_t j = 0; j < QUAD; j++) {
                    int8x16_t v = vldrbq_s8(x + j * LANES);

                    sum0[j] = vmladavaq_s8(sum0[j], v, w0);
                    sum1[j] = vmladavaq_s8(sum1[j], v, w1);
                }
                weight0 += LANES;
                weight1 += LANES;
                HIDE(x);    /* or the loop gets a counter of its own, and has a register too few */
            }
            code = requantize(sum0, sum1, bias0, bias1, mul0, mul1, relu);
            vstrbq_s32(to0, code);
            vstrbq_s32(to1, vshrq_n_s32(code, 16));
            to0 += QUAD;
            to1 += QUAD;
        }
    }
}

/* The forms that nets need, each with all registers for itself */
static NOINLINE void one_vector(const mve_block *b)
{
    few_taps(b, 1, 0);
}

static NOINLINE void two_vectors(const mve_block *b)
{
    few_taps(b, 2, 0);
}

static NOINLINE void vectors(const mve_block *b)
{
    many_taps(b, 0);
}

static NOINLINE void one_vector_relu(const mve_block *b)
{
    few_taps(b, 1, 1);
}

static NOINLINE void two_vectors_relu(const mve_block *b)
{
    few_taps(b, 2, 1);
}

static NOINLINE void vectors_relu(const mve_block *b)
{
    many_taps(b, 1);
}

static void (*const products[2][3])(const mve_block *) = {
    {one_vector, two_vectors, vectors}, {one_vector_relu, two_vectors_relu, vectors_relu}};

/* conv1d with channels or taps to sum over, without shifts. layer: ecg_conv_layer, weight: int8 (out, in /
 * groups * kernel) and 15 bytes that are read but do not matter. scratch: COLUMNS * LANES bytes, as many
 * for every 16 taps or part of them (four times as many up to 32 taps), and QUAD * out / groups. */
void ecg_conv_mve(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_conv_layer *l = layer;
    int32_t depth = l->in / l->groups, share = l->out / l->groups, columns = out->end - out->first;
    int32_t taps = depth * l->kernel, count = (taps + LANES - 1) / LANES, quad = count * QUAD * LANES;
    int32_t most = count > 2 ? COLUMNS : 4 * COLUMNS;
    int8_t *half = scratch, *x = half + COLUMNS * LANES, *few = x + most * LANES * count;
    mve_block b = {.x = x, .channels = share, .taps = taps, .rows = out->pitch * l->leads};

    for (int32_t g = 0; g < l->groups; g++)
        for (int32_t lead = 0; lead < l->leads; lead++) {
            const int8_t *row = in->data + (g * depth * l->leads + lead) * in->pitch;
            int8_t *to = out->data + (g * share * l->leads + lead) * out->pitch;

            b.weight = (const int8_t *)l->weight + g * share * taps;
            b.scale = l->scale + g * share;
            for (int32_t t = 0; t < columns; t += b.columns) {
                int32_t start;

                b.columns = ecg_clamp((columns - t + QUAD - 1) / QUAD * QUAD, 0, most);
                if (t + b.columns > columns && columns >= b.columns)
                    t = columns - b.columns;        /* some columns are computed again, to the same values */
                else if (t + b.columns > columns && columns >= QUAD)
                    b.columns -= QUAD;              /* 5 to 7 columns */
                b.to = columns < QUAD ? few : to + t;
                b.rows = columns < QUAD ? QUAD : out->pitch * l->leads;
                start = (out->first + t) * l->stride - l->pad;
                for (int32_t i = 0; i < b.columns; i += COLUMNS)
                    transpose(l, in, row, start + i * l->stride, half, x + i / QUAD * quad, quad);
                products[l->relu][count < 3 ? count - 1 : 2](&b);
            }
            if (columns < QUAD)
                for (int32_t o = 0; o < share; o++)
                    memcpy(to + o * out->pitch * l->leads, few + o * QUAD, (size_t)columns);
        }
}
#endif
