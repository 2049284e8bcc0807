/* SPDX-License-Identifier: Apache-2.0 */
#include "ecg_fixed.h"
#include "ecg_kernels.h"

enum { ROWS = 4 };              /* outputs that share each input code */

/* A dense layer for scalar cores (Cortex-M0+, M3). layer: ecg_dense_layer, weight: int8 [out /
 * ROWS][in][ROWS], with zeros where there is no output. No scratch. */
void ecg_dense_four(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_dense_layer *l = layer;
    const int8_t *weight = l->weight;
    int32_t taps = l->in;

    (void)scratch;
    for (int32_t o = 0; o < l->out; o += ROWS) {
        const int8_t *x = in->data, *end = x + taps;
        int32_t sum[ROWS], a = 0, b = 0, c = 0, d = 0;

#pragma GCC unroll 4
        for (; x < end; weight += ROWS) {
            int32_t code = *x++;

            a += code * weight[0];
            b += code * weight[1];
            c += code * weight[2];
            d += code * weight[3];
        }
        sum[0] = a;
        sum[1] = b;
        sum[2] = c;
        sum[3] = d;
        for (int32_t j = 0; j < ROWS && o + j < l->out; j++)
            out->data[o + j] = ecg_requantize(sum[j] + l->scale[o + j].bias, l->scale[o + j].mul,
                                              l->shift ? l->shift[o + j] : 0, l->relu ? 0 : -128);
    }
}
