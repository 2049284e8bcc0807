/* SPDX-License-Identifier: Apache-2.0
 *
 * Codes in other places: side by side, a part, other axes. */
#include "ecg_fixed.h"
#include "ecg_kernels.h"

/* `count` codes, brought to another scale where mul is not 0. */
static void rescale(int8_t *to, const int8_t *from, int32_t count, int32_t mul, unsigned shift)
{
    if (mul == 0) {
        memcpy(to, from, (size_t)count);
        return;
    }
    for (int32_t t = 0; t < count; t++)
        to[t] = ecg_requantize(from[t], mul, shift, -128);
}

/* in: `inputs` views, input i with count[i] steps along `axis`; out: all of them, one behind the other. */
void ecg_concat(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_concat_layer *p = layer;
    int32_t start = 0;      /* step along the axis at which input i begins */

    (void)scratch;
    for (int32_t i = 0; i < p->inputs; start += p->count[i], i++, in++) {
        const int32_t channels = p->axis == 0 ? p->count[i] : p->channels;
        const int32_t leads = p->axis == 1 ? p->count[i] : p->leads;
        const int32_t moved = p->axis == 2 ? start : 0;         /* output column of the input's column 0 */
        int32_t first = out->first, end = out->end;
        const int8_t *from = in->data;

        if (p->axis == 2) {
            first = first > start ? first : start;
            end = end < start + p->count[i] ? end : start + p->count[i];
            if (first >= end)
                continue;
        }
        for (int32_t c = 0; c < channels; c++) {
            for (int32_t l = 0; l < leads; l++, from += in->pitch) {
                int32_t row = (p->axis == 0 ? start + c : c) * p->leads + (p->axis == 1 ? start + l : l);
                rescale(out->data + row * out->pitch + (first - out->first), from + (first - moved - in->first),
                        end - first, p->mul[i], p->shift[i]);
            }
        }
    }
}

/* in: x; out: its steps start .. stop - 1 along `axis`, from 0 on. */
void ecg_slice(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_slice_layer *p = layer;
    const int32_t c0 = p->axis == 0 ? p->start : 0, c1 = p->axis == 0 ? p->stop : p->channels;
    const int32_t l0 = p->axis == 1 ? p->start : 0, l1 = p->axis == 1 ? p->stop : p->leads;
    const int32_t column = out->first + (p->axis == 2 ? p->start : 0) - in->first;
    int8_t *to = out->data;

    (void)scratch;
    for (int32_t c = c0; c < c1; c++)
        for (int32_t l = l0; l < l1; l++, to += out->pitch)
            memcpy(to, in->data + (c * p->leads + l) * in->pitch + column, (size_t)(out->end - out->first));
}

/* in: x; out: axis i of the output is axis perm[i] of the input. */
void ecg_transpose(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_transpose_layer *p = layer;
    const int32_t size[3] = { p->channels, p->leads, in->end - in->first };
    const int32_t stride[3] = { p->leads * in->pitch, in->pitch, 1 };
    const int32_t channels = size[p->perm[0]], leads = size[p->perm[1]], columns = out->end - out->first;
    const int32_t step = stride[p->perm[2]];
    const int8_t *from = in->data + (out->first - (p->perm[2] == 2 ? in->first : 0)) * step;
    int8_t *to = out->data;

    (void)scratch;
    for (int32_t c = 0; c < channels; c++) {
        for (int32_t l = 0; l < leads; l++, to += out->pitch) {
            const int8_t *x = from + c * stride[p->perm[0]] + l * stride[p->perm[1]];
            for (int32_t t = 0; t < columns; t++, x += step)
                to[t] = *x;
        }
    }
}
