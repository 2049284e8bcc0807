/* SPDX-License-Identifier: Apache-2.0
 *
 * An LSTM in integers; formulas and grids in compress/reference_lstm.py. */
#include "ecg_fixed.h"
#include "ecg_kernels.h"

#define ONE 32768       /* of a gate */

static int32_t dot(const int8_t *a, const int8_t *b, int32_t n)
{
    int32_t sum = 0;

    for (int32_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* sigmoid of a pre-activation, 1024 steps around 0 */
static int32_t gate(const uint16_t *table, int32_t z)
{
    return table[ecg_clamp(z, -512, 511) + 512];
}

/* Row r of both matrices: the pre-activation. h is NULL in the first step, where the state is 0. */
static int32_t row(const ecg_lstm_layer *p, const int8_t *x, const int8_t *h, int32_t r)
{
    int64_t z = (int64_t)p->bias[r] * (1 << 16) + ((int64_t)1 << 31);

    z += (int64_t)dot(p->weight_x + r * p->features, x, p->features) * p->mul_x[r];
    if (h)
        z += (int64_t)dot(p->weight_h + r * p->hidden, h, p->hidden) * p->mul_h[r];
    return (int32_t)(z >> 32);
}

/* One step: cell is updated, the new state goes to `to`, which is not h. */
static void advance(const ecg_lstm_layer *p, const int8_t *x, const int8_t *h, int16_t *cell, int8_t *to)
{
    const int32_t n = p->hidden;

    for (int32_t j = 0; j < n; j++) {
        int32_t i = gate(p->table, row(p, x, h, j));
        int32_t f = gate(p->table, row(p, x, h, n + j));
        int32_t g = 2 * gate(p->table, row(p, x, h, 2 * n + j)) - ONE;
        int32_t o = gate(p->table, row(p, x, h, 3 * n + j));
        int32_t before = h ? cell[j] : 0;
        int32_t c = ecg_clamp((f * before + ((i * g) >> 4) + (1 << 14)) >> 15, -ONE, ONE - 1);
        int32_t u = 2 * gate(p->table, (c + 8) >> 4) - ONE;
        cell[j] = (int16_t)c;
        to[j] = (int8_t)ecg_clamp((o * u + (1 << 22)) >> 23, -128, 127);
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
