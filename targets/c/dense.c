/* SPDX-License-Identifier: Apache-2.0 */
#include "ecg_fixed.h"
#include "ecg_kernels.h"

/* dense in plain C: the definition. layer: ecg_dense_layer, weight: int8 (out, in). No scratch. */
void ecg_dense(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_dense_layer *l = layer;
    const int8_t *weight = l->weight;
    int32_t low = l->relu ? 0 : -128;

    (void)scratch;
    for (int32_t o = 0; o < l->out; o++, weight += l->in) {
        int32_t acc = l->scale[o].bias;

        for (int32_t i = 0; i < l->in; i++)
            acc += weight[i] * in->data[i];
        out->data[o] = ecg_requantize(acc, l->scale[o].mul, l->shift ? l->shift[o] : 0, low);
    }
}
