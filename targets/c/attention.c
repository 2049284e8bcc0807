/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention with an integer softmax, one query after the other. compress/reference_attention.py defines
 * it:
 *
 *     score = sum of q * k over leads and d, + bias
 *     e = table[min(rescale(max - score), 1023)],  U = sum of e * v
 *     R = rounded floor(2^40 / sum of e) * out_mul / 2^24,  out = rounded U * R / 2^40
 *
 * The leads of a channel lie one after the other, so d * leads rows of a head are one long vector. Rows
 * are taken two at a time, because a score or a weight costs as much to fetch as a product to compute. */
#include "ecg_attention.h"

/* Scores of query t at the keys that it sees. Returns the largest. */
static int32_t scores(const ecg_attention_layer *a, const ecg_view *q, const ecg_view *k, int32_t head,
                      int32_t t, ecg_range see, int32_t *score)
{
    const int32_t keys = see.to - see.from;
    int32_t depth = a->d * a->leads;
    const int8_t *query = q->data + head * depth * q->pitch + (t - q->first);
    const int8_t *key = k->data + head * depth * k->pitch + (see.from - k->first);
    const int32_t *bias = a->bias ? a->bias + head * (2 * a->size - 1) + (see.from - t + a->size - 1) : NULL;
    for (int32_t s = 0; s < keys; s++)
        score[s] = bias ? bias[s] : 0;
    for (; depth > 1; depth -= 2) {
        const int32_t x = query[0], y = query[q->pitch];
        const int8_t *next = key + k->pitch;
        for (int32_t s = 0; s < keys; s++)
            score[s] += x * key[s] + y * next[s];
        query += 2 * q->pitch;
        key += 2 * k->pitch;
    }
    for (int32_t s = 0; depth && s < keys; s++)
        score[s] += *query * key[s];
    int32_t top = score[0];
    for (int32_t s = 1; s < keys; s++)
        top = score[s] > top ? score[s] : top;
    return top;
}

/* Scores become weights e in their place. Returns their sum. */
static int32_t weights(const uint16_t *table, int32_t mul, unsigned shift, int32_t top, int32_t keys,
                       int32_t *score)
{
    int32_t sum = 0;
    for (int32_t s = 0; s < keys; s++) {
        const int32_t index = ecg_mulhi((int32_t)((uint32_t)(top - score[s]) << shift), mul);
        score[s] = table[index < ECG_EXP_ENTRIES ? index : ECG_EXP_ENTRIES - 1];
        sum += score[s];
    }
    return sum;
}

/* Weighted sums of two rows of v. */
static void weighted(const int32_t *e, const int8_t *v, const int8_t *next, int32_t keys, int32_t sum[2])
{
    int32_t a = 0, b = 0;
    for (int32_t s = 0; s < keys; s++) {
        a += e[s] * v[s];
        b += e[s] * next[s];
    }
    sum[0] = a;
    sum[1] = b;
}

/* layer: ecg_attention_layer. in: q, k, v (, q2, k2); every key that a query of the output sees is in k
 * and v. scratch: 4 bytes for each key that a query sees, and as many for the second map. */
void ecg_attention(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_attention_layer *a = layer;
    const ecg_view *v = &in[2];
    const int32_t width = a->dv * a->leads, maps = a->pair ? 2 : 1;
    for (int32_t head = 0; head < a->heads; head++) {
        for (int32_t t = out->first; t < out->end; t++) {
            const ecg_range see = ecg_attention_keys(a, &in[1], t);
            const int32_t keys = see.to - see.from;
            int32_t *const e = scratch, factor[2];
            for (int map = 0; map < maps; map++) {
                const int32_t top = scores(a, &in[3 * map], &in[3 * map + 1], head, t, see, e + map * keys);
                const int32_t sum = weights(a->table, map ? a->score_mul2 : a->score_mul,
                                            map ? a->score_shift2 : a->score_shift, top, keys,
                                            e + map * keys);
                factor[map] = ecg_attention_factor(sum, map ? a->out_mul2 : a->out_mul);
            }
            const int8_t *value = v->data + head * width * v->pitch + (see.from - v->first);
            int8_t *to = out->data + head * width * out->pitch + (t - out->first);
            for (int32_t row = 0; row < width; row += 2) {
                const int32_t more = row + 1 < width;       /* else the last row is its own partner */
                const int8_t *next = value + more * v->pitch;
                int32_t sum[2], sum2[2];
                weighted(e, value, next, keys, sum);
                if (maps > 1) {
                    weighted(e + keys, value, next, keys, sum2);
                    to[more * out->pitch] = ecg_attention_out2(sum[1], factor[0], sum2[1], factor[1]);
                    to[0] = ecg_attention_out2(sum[0], factor[0], sum2[0], factor[1]);
                } else {
                    to[more * out->pitch] = ecg_attention_out(sum[1], factor[0]);
                    to[0] = ecg_attention_out(sum[0], factor[0]);
                }
                value += 2 * v->pitch;
                to += 2 * out->pitch;
            }
        }
    }
}
