/* SPDX-License-Identifier: Apache-2.0
 *
 * Filters along time with the vectors of the Cortex-M55 (MVE): one instruction sums up to 16 taps of a
 * column. */
#include "ecg_fixed.h"
#include "ecg_kernels.h"

#if defined(__ARM_FEATURE_MVE)
#include <arm_mve.h>

#define NOINLINE __attribute__((noinline))      /* or the compiler's registers run out */

enum {
    LANES = 16,                 /* codes of a vector */
    COLUMNS = 8,                /* output columns that are requantized together */
    TILE = 128                  /* output columns for which the input is looked at together */
};

/* The input row that starts at `row`, from column `start` on, with zeros around it; whole vectors */
static void copy(const ecg_view *in, const int8_t *row, int32_t start, int32_t bytes, int8_t *to)
{
    int32_t low = in->first - start, high = in->end - start;

    row -= low;
    for (; bytes > 0; bytes -= LANES, low -= LANES, high -= LANES, row += LANES, to += LANES) {
        if (low <= 0 && high >= LANES) {
            vstrbq_s8(to, vldrbq_s8(row));
        } else {
            mve_pred16_t there = (mve_pred16_t)(vctp8q((uint32_t)(high > 0 ? high : 0))
                                                & ~vctp8q((uint32_t)(low > 0 ? low : 0)));

            vstrbq_s8(to, vldrbq_z_s8(row, there));
        }
    }
}

/* x: what the first of `columns` columns, a multiple of COLUMNS, meets with its first tap; vectors: of
 * weights. */
typedef struct {
    const int8_t *x;
    int32_t vectors, stride, columns, low;
} fir;

/* One output channel. vectors and stride are constants where this is inlined. */
static inline void filter(const fir *f, const ecg_scale *scale, const int8_t *weight, int8_t *to,
                          int32_t vectors, int32_t stride)
{
    const int8_t *x = f->x;
    int8x16_t w = vldrbq_s8(weight), low = vdupq_n_s8((int8_t)f->low);
    int32x4_t mul = vdupq_n_s32(scale->mul);
    int32_t bias = scale->bias;

    for (int32_t i = f->columns / COLUMNS; i > 0; i--, x += COLUMNS * stride, to += COLUMNS) {
        int32_t sum[COLUMNS];
        int16x8_t code;

#pragma GCC unroll 8
        for (int32_t j = 0; j < COLUMNS; j++)
            sum[j] = vmladavq_s8(vldrbq_s8(x + j * stride), w);
        for (int32_t v = 1; v < vectors; v++) {
            int8x16_t more = vldrbq_s8(weight + v * LANES);

#pragma GCC unroll 8
            for (int32_t j = 0; j < COLUMNS; j++)
                sum[j] = vmladavaq_s8(sum[j], vldrbq_s8(x + v * LANES + j * stride), more);
        }
        int32x4_t even = {sum[0], sum[2], sum[4], sum[6]}, odd = {sum[1], sum[3], sum[5], sum[7]};

        even = vrmulhq_s32(vaddq_n_s32(even, bias), mul);
        odd = vrmulhq_s32(vaddq_n_s32(odd, bias), mul);
        code = vqmovntq_s32(vqmovnbq_s32(vreinterpretq_s16_s32(even), even), odd);
        vstrbq_s16(to, vreinterpretq_s16_s8(vmaxq_s8(vqmovnbq_s16(vreinterpretq_s8_s16(code), code), low)));
    }
}

/* The strides of ECG nets, and any other */
static NOINLINE void filter1(const fir *f, const ecg_scale *scale, const int8_t *weight, int8_t *to)
{
    filter(f, scale, weight, to, 1, 1);
}

static NOINLINE void filter2(const fir *f, const ecg_scale *scale, const int8_t *weight, int8_t *to)
{
    filter(f, scale, weight, to, 1, 2);
}

static NOINLINE void filter4(const fir *f, const ecg_scale *scale, const int8_t *weight, int8_t *to)
{
    filter(f, scale, weight, to, 1, 4);
}

static NOINLINE void filter_any(const fir *f, const ecg_scale *scale, const int8_t *weight, int8_t *to)
{
    filter(f, scale, weight, to, f->vectors, f->stride);
}

/* conv1d with one channel in each group, without shifts. layer: ecg_conv_layer, weight: int8 (out,
 * kernel), each row filled up to vectors with 0. scratch: TILE - 1 strides and the taps, in whole vectors,
 * and COLUMNS * out / groups bytes. */
void ecg_fir_mve(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_conv_layer *l = layer;
    int32_t share = l->out / l->groups, columns = out->end - out->first, rows = out->pitch * l->leads;
    int32_t vectors = (l->kernel + LANES - 1) / LANES;
    int32_t most = ((TILE - 1) * l->stride + (vectors + 1) * LANES - 1) / LANES * LANES;
    int8_t *x = scratch, *few = x + most;
    fir f = {x, vectors, l->stride, 0, l->relu ? 0 : -128};

    for (int32_t g = 0; g < l->groups; g++)
        for (int32_t lead = 0; lead < l->leads; lead++) {
            const int8_t *row = in->data + (g * l->leads + lead) * in->pitch;
            int8_t *to = out->data + (g * share * l->leads + lead) * out->pitch;

            for (int32_t t = 0; t < columns; t += f.columns) {
                const int8_t *weight = (const int8_t *)l->weight + g * share * f.vectors * LANES;
                int32_t start, bytes;

                f.columns = ecg_clamp((columns - t + COLUMNS - 1) / COLUMNS * COLUMNS, 0, TILE);
                if (t + f.columns > columns && columns >= f.columns)
                    t = columns - f.columns;        /* some columns are computed again, to the same values */
                else if (t + f.columns > columns && columns >= COLUMNS)
                    f.columns -= COLUMNS;           /* 9 to 15 columns */
                start = (out->first + t) * l->stride - l->pad;
                bytes = (f.columns - 1) * l->stride + f.vectors * LANES;
                f.x = row + (start - in->first);
                if (start < in->first || start + bytes > in->end) {
                    copy(in, row, start, bytes, x);
                    f.x = x;
                }
                for (int32_t o = 0; o < share; o++, weight += f.vectors * LANES) {
                    const ecg_scale *scale = l->scale + g * share + o;
                    int8_t *at = columns < COLUMNS ? few + o * COLUMNS : to + o * rows + t;

                    if (f.vectors == 1 && l->stride == 1)
                        filter1(&f, scale, weight, at);
                    else if (f.vectors == 1 && l->stride == 2)
                        filter2(&f, scale, weight, at);
                    else if (f.vectors == 1 && l->stride == 4)
                        filter4(&f, scale, weight, at);
                    else
                        filter_any(&f, scale, weight, at);
                }
            }
            if (columns < COLUMNS)
                for (int32_t o = 0; o < share; o++)
                    memcpy(to + o * rows, few + o * COLUMNS, (size_t)columns);
        }
}
#endif
