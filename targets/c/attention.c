/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention with an integer softmax, one query after the other. compress/reference_attention.py defines it:
 *
 *     score = sum of q * k over leads and d, + bias
 *     e = table[min(rescale(max - score), 1023)],  U = sum of e * v
 *     R = rounded floor(2^40 / sum of e) * out_mul / 2^24,  out = rounded U * R / 2^40
 *
 * The leads of a channel lie one after the other, so d * leads rows of a head are one long vector.
 */
#include "ecg_attention.h"

/* Scores of query t at the keys that it sees. Returns the largest. */
static int32_t scores(const ecg_attention_layer *a, const ecg_view *q, const ecg_view *k, int32_t head, int32_t t,
                      ecg_range see, int32_t *score)
{
    const int32_t depth = a->d * a->leads, keys = see.to - see.from, from = see.from;
    const int8_t *query = q->data + head * depth * q->pitch + (t - q->first);
    const int8_t *key = k->data + head * depth * k->pitch + (from - k->first);
    const int32_t *bias = a->bias ? a->bias + head * (2 * a->size - 1) + (from - t + a->size - 1) : NULL;
    for (int32_t s = 0; s < keys; s++)
        score[s] = bias ? bias[s] : 0;
    for (int32_t row = 0; row < depth; row++) {
        const int32_t x = *query;
        for (int32_t s = 0; s < keys; s++)
            score[s] += x * key[s];
        query += q->pitch;
        key += k->pitch;
    }
    int32_t top = score[0];
    for (int32_t s = 1; s < keys; s++)
        top = score[s] > top ? score[s] : top;
    return top;
}

/* Scores become weights e in their place. Returns their sum. */
static int32_t weights(const uint16_t *table, int32_t mul, unsigned shift, int32_t top, int32_t keys, int32_t *score)
{
    int32_t sum = 0;
    for (int32_t s = 0; s < keys; s++) {
        const int32_t index = ecg_mulhi((int32_t)((uint32_t)(top - score[s]) << shift), mul);
        score[s] = table[index < ECG_EXP_ENTRIES ? index : ECG_EXP_ENTRIES - 1];
        sum += score[s];
    }
    return sum;
}

static int32_t weighted(const int32_t *e, const int8_t *v, int32_t keys)
{
    int32_t sum = 0;
    for (int32_t s = 0; s < keys; s++)
        sum += e[s] * v[s];
    return sum;
}

/* layer: ecg_attention_layer. in: q, k, v (, q2, k2); every key that a query of the output sees is in k and v.
 * scratch: 4 bytes for each key that a query sees, and as many for the second map. */
void ecg_attention(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_attention_layer *a = layer;
    const ecg_view *q = &in[0], *k = &in[1], *v = &in[2];
    const int32_t width = a->dv * a->leads;
    for (int32_t head = 0; head < a->heads; head++) {
        for (int32_t t = out->first; t < out->end; t++) {
            const ecg_range see = ecg_attention_keys(a, k, t);
            const int32_t keys = see.to - see.from;
            int32_t *const e = scratch;
            const int32_t top = scores(a, q, k, head, t, see, e);
            const int32_t sum = weights(a->table, a->score_mul, a->score_shift, top, keys, e);
            const int32_t factor = ecg_attention_factor(sum, a->out_mul);
            int32_t *const e2 = e + keys;
            int32_t factor2 = 0;
            if (a->pair) {
                const int32_t top2 = scores(a, &in[3], &in[4], head, t, see, e2);
                const int32_t sum2 = weights(a->table, a->score_mul2, a->score_shift2, top2, keys, e2);
                factor2 = ecg_attention_factor(sum2, a->out_mul2);
            }
            const int8_t *value = v->data + head * width * v->pitch + (see.from - v->first);
            int8_t *to_out = out->data + head * width * out->pitch + (t - out->first);
            for (int32_t row = 0; row < width; row++) {
                int64_t sums = (int64_t)weighted(e, value, keys) * factor;
                if (a->pair)
                    sums -= (int64_t)weighted(e2, value, keys) * factor2;
                *to_out = ecg_attention_out(sums);
                value += v->pitch;
                to_out += out->pitch;
            }
        }
    }
}
