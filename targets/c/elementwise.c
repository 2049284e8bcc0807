/* SPDX-License-Identifier: Apache-2.0
 *
 * Sum, product and table of codes, one output for each column. */
#include "ecg_fixed.h"
#include "ecg_kernels.h"

/* Where the operand `which` of output row (channel, lead) starts, at the output's first column. */
static const int8_t *operand(const ecg_pair_layer *p, const ecg_view *in, int which, int32_t channel, int32_t lead,
                             int32_t first)
{
    unsigned repeat = p->repeat[which];
    int32_t row = (repeat & 1 ? 0 : channel) * (repeat & 2 ? 1 : p->leads) + (repeat & 2 ? 0 : lead);

    return in[which].data + row * in[which].pitch + (repeat & 4 ? 0 : first - in[which].first);
}

/* 1 where an operand moves along with the columns, 0 where its one column is repeated */
static int32_t step(const ecg_pair_layer *p, int which)
{
    return p->repeat[which] & 4 ? 0 : 1;
}

/* in: a, b; out = clamp((a * mul[0] + b * mul[1] + 2^(shift - 1)) >> shift), at least 0 with relu. shift 1 .. 22. */
void ecg_add(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_pair_layer *p = layer;
    const int32_t half = (int32_t)1 << (p->shift - 1), low = p->relu ? 0 : -128;
    const int32_t step_a = step(p, 0), step_b = step(p, 1), columns = out->end - out->first;
    int8_t *to = out->data;

    (void)scratch;
    for (int32_t c = 0; c < p->channels; c++) {
        for (int32_t l = 0; l < p->leads; l++, to += out->pitch) {
            const int8_t *a = operand(p, in, 0, c, l, out->first), *b = operand(p, in, 1, c, l, out->first);
            for (int32_t t = 0; t < columns; t++, a += step_a, b += step_b)
                to[t] = (int8_t)ecg_clamp((*a * p->mul[0] + *b * p->mul[1] + half) >> p->shift, low, 127);
        }
    }
}

/* in: a, b; out = requantize(a * b, mul[0], shift) */
void ecg_mul(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_pair_layer *p = layer;
    const int32_t step_a = step(p, 0), step_b = step(p, 1), columns = out->end - out->first;
    int8_t *to = out->data;

    (void)scratch;
    for (int32_t c = 0; c < p->channels; c++) {
        for (int32_t l = 0; l < p->leads; l++, to += out->pitch) {
            const int8_t *a = operand(p, in, 0, c, l, out->first), *b = operand(p, in, 1, c, l, out->first);
            for (int32_t t = 0; t < columns; t++, a += step_a, b += step_b)
                to[t] = ecg_requantize(*a * *b, p->mul[0], p->shift, -128);
        }
    }
}

/* in: x; out = table[x + 128] */
void ecg_table(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_table_layer *p = layer;
    const int8_t *from = in->data + (out->first - in->first), *table = p->table + 128;
    const int32_t columns = out->end - out->first;
    int8_t *to = out->data;

    (void)scratch;
    for (int32_t r = 0; r < p->rows; r++, from += in->pitch, to += out->pitch)
        for (int32_t t = 0; t < columns; t++)
            to[t] = table[from[t]];
}
