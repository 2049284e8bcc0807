/* SPDX-License-Identifier: Apache-2.0
 *
 * Dense layers with the vectors of the Cortex-M55 (MVE). */
#include "ecg_fixed.h"
#include "ecg_kernels.h"

#if defined(__ARM_FEATURE_MVE)
#include <arm_mve.h>

enum {
    LANES = 16,                 /* codes of a vector */
    ROWS = 4                    /* outputs that are requantized together */
};

/* A dense layer without shifts. layer: ecg_dense_layer, weight: int8 (out, in), rows of zeros up to a
 * multiple of ROWS, and 15 bytes that are read but do not matter; as many scales as rows. No scratch. */
void ecg_dense_mve(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_dense_layer *l = layer;
    const int8_t *w3 = l->weight, *data = in->data;
    const int32_t *scale = (const int32_t *)(const void *)l->scale;
    int32_t taps = l->in, tail = taps % LANES;
    int8x16_t low = vdupq_n_s8(l->relu ? 0 : -128);
    int8_t *to = out->data;

    (void)scratch;
    for (int32_t left = l->out; left > 0; left -= ROWS) {
        const int8_t *x = data, *w0 = w3, *w1 = w0 + taps, *w2 = w1 + taps;
        int32_t a = 0, b = 0, c = 0, d = 0;
        int16x8_t half;
        int8x16_t code;

        w3 = w2 + taps;
        for (int32_t i = taps / LANES; i > 0; i--) {
            int8x16_t v = vldrbq_s8(x);

            a = vmladavaq_s8(a, v, vldrbq_s8(w0));
            b = vmladavaq_s8(b, v, vldrbq_s8(w1));
            c = vmladavaq_s8(c, v, vldrbq_s8(w2));
            d = vmladavaq_s8(d, v, vldrbq_s8(w3));
            x += LANES;
            w0 += LANES;
            w1 += LANES;
            w2 += LANES;
            w3 += LANES;
        }
        if (tail) {
            int8x16_t v = vldrbq_z_s8(x, vctp8q((uint32_t)tail));

            a = vmladavaq_s8(a, v, vldrbq_s8(w0));
            b = vmladavaq_s8(b, v, vldrbq_s8(w1));
            c = vmladavaq_s8(c, v, vldrbq_s8(w2));
            d = vmladavaq_s8(d, v, vldrbq_s8(w3));
            w3 += tail;
        }
        int32x4x2_t pair = vld2q_s32(scale);            /* biases, multipliers */
        int32x4_t sum = {a, b, c, d};

        sum = vrmulhq_s32(vaddq_s32(sum, pair.val[0]), pair.val[1]);
        half = vqmovnbq_s32(vreinterpretq_s16_s32(sum), sum);
        code = vmaxq_s8(vqmovnbq_s16(vreinterpretq_s8_s16(half), half), low);
        vstrbq_p_s32(to, vreinterpretq_s32_s8(code), vctp32q((uint32_t)left));
        scale += 2 * ROWS;
        to += ROWS;
    }
}
#endif
