/* SPDX-License-Identifier: Apache-2.0
 *
 * An LSTM in integers; formulas and grids in compress/reference_lstm.py. */
#include "ecg_fixed.h"
#include "ecg_kernels.h"

#define ONE 32768       /* of a gate */

/* Sums of products of x with one row of each gate; the gates lie `apart` bytes apart. */
static void products(const int8_t *w, int32_t apart, const int8_t *x, int32_t n, int32_t *sum)
{
    int32_t i = 0, f = 0, g = 0, o = 0;

    for (; n > 0; n--, w++, x++) {
        i += w[0] * *x;
        f += w[apart] * *x;
        g += w[2 * apart] * *x;
        o += w[3 * apart] * *x;
    }
    sum[0] = i;
    sum[1] = f;
    sum[2] = g;
    sum[3] = o;
}

/* sigmoid of a pre-activation, 1024 steps around 0 */
static int32_t sigmoid(const uint16_t *table, int32_t z)
{
    return table[ecg_clamp(z, -512, 511) + 512];
}

/* One step: cell is updated, the new state goes to `to`, which is not h. h is NULL in the first one: all states are 0. */
static void advance(const ecg_lstm_layer *p, const int8_t *x, const int8_t *h, int16_t *cell, int8_t *to)
{
    const int32_t n = p->hidden;

    for (int32_t j = 0; j < n; j++) {
        int32_t from_x[4], from_h[4] = { 0, 0, 0, 0 }, gate[4], c, u;

        products(p->weight_x + j * p->features, n * p->features, x, p->features, from_x);
        if (h)
            products(p->weight_h + j * n, n * n, h, n, from_h);
        for (int32_t k = 0, r = j; k < 4; k++, r += n) {
            const int64_t z = (int64_t)from_x[k] * p->mul_x[r] + (int64_t)from_h[k] * p->mul_h[r];
            gate[k] = sigmoid(p->table, (int32_t)((z + (int64_t)p->bias[r] * (1 << 16) + ((int64_t)1 << 31)) >> 32));
        }
        c = gate[1] * (h ? cell[j] : 0) + ((gate[0] * (2 * gate[2] - ONE)) >> 4);
        c = ecg_clamp((c + (1 << 14)) >> 15, -ONE, ONE - 1);
        u = 2 * sigmoid(p->table, (c + 8) >> 4) - ONE;
        cell[j] = (int16_t)c;
        to[j] = (int8_t)ecg_saturate((gate[3] * u + (1 << 22)) >> 23);
    }
}

/* in: x (step, feature); out: every state (step, hidden) with `sequence`, else the last one (hidden,). scratch: the
 * cell, hidden int16; without `sequence` two states behind it, one read while the other is written. */
void ecg_lstm(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_lstm_layer *p = layer;
    int16_t *cell = scratch;
    int8_t *spare = (int8_t *)(cell + p->hidden);
    const int8_t *h = NULL;

    for (int32_t t = 0; t < p->steps; t++) {
        int8_t *to = spare + (t & 1) * p->hidden;
        if (p->sequence)
            to = out->data + t * out->pitch;
        else if (t == p->steps - 1)
            to = out->data;
        advance(p, in->data + t * in->pitch, h, cell, to);
        h = to;
    }
}
