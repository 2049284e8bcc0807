/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention with the vectors of the Cortex-M55 (MVE). ecg_attention() is its definition.
 *
 * The codes of a key lie in different rows. They are brought side by side, 16 rows a vector, for as many
 * keys as there is room for; then one instruction gives the score of a key over 16 rows. Weights have 16
 * bits, of which eight meet eight codes of a row of v. */
#include "ecg_attention.h"

#if defined(__ARM_FEATURE_MVE)
#include <arm_mve.h>

#define NOINLINE __attribute__((noinline))      /* or the compiler's registers run out */

enum { LANES = 16, ROWS = 4 };      /* codes of a vector; rows of v that meet the weights together */

/* Codes of the keys have.from .. have.to - 1 of a head: key i's in rows 16 p .. 16 p + 15 at at + (p *
 * room + i) * 16 */
typedef struct {
    int8_t *at;
    int32_t room, head;
    ecg_range have;
} sorted;

static NOINLINE void sort(sorted *k, const ecg_attention_layer *a, const ecg_view *in, int32_t head,
                          ecg_range see)
{
    const int32_t depth = a->d * a->leads;
    const uint8x16_t steps = vmulq_n_u8(vidupq_n_u8(0, 1), LANES);
    if (k->head == head && k->have.from <= see.from && see.to <= k->have.to)
        return;
    k->head = head;
    k->have.from = see.from;
    k->have.to = see.from + k->room < in->end ? see.from + k->room : in->end;
    const int8_t *row = in->data + head * depth * in->pitch + (see.from - in->first);
    for (int32_t r = 0; r < depth; r++) {
        int8_t *to = k->at + r / LANES * k->room * LANES + r % LANES;
        for (int32_t s = 0, keys = k->have.to - see.from; s < keys; s += LANES) {
            const mve_pred16_t there = vctp8q((uint32_t)(keys - s));
            vstrbq_scatter_offset_p_s8(to + s * LANES, steps, vldrbq_z_s8(row + s, there), there);
        }
        row += in->pitch;
    }
}

/* Scores of a query at the keys that it sees. query: its codes, 0 behind the last up to a whole vector. */
static NOINLINE void scores(const sorted *k, const int8_t *query, int32_t depth, ecg_range see,
                            int32_t *score)
{
    const int8_t *panel = k->at + (see.from - k->have.from) * LANES;
    const int32_t keys = see.to - see.from;
    const int8x16_t first = vldrbq_s8(query);
    for (int32_t s = 0; s < keys; s++)
        score[s] = vmladavq_s8(first, vldrbq_s8(panel + s * LANES));
    for (int32_t r = LANES; r < depth; r += LANES) {
        const int8x16_t more = vldrbq_s8(query + r);
        panel += k->room * LANES;
        for (int32_t s = 0; s < keys; s++)
            score[s] = vmladavaq_s8(score[s], more, vldrbq_s8(panel + s * LANES));
    }
}

/* Scores and their bias, unless that is NULL, become weights. Returns their sum. */
static NOINLINE int32_t weights(const uint16_t *table, int32_t mul, int32_t shift, int32_t *score,
                                const int32_t *bias, int32_t keys, uint16_t *e)
{
    int32_t top = INT32_MIN;
    uint32_t sum = 0;
    for (int32_t s = 0; s < keys; s += 4) {
        const mve_pred16_t there = vctp32q((uint32_t)(keys - s));
        int32x4_t x = vldrwq_z_s32(score + s, there);
        if (bias) {
            x = vaddq_s32(x, vldrwq_z_s32(bias + s, there));
            vstrwq_p_s32(score + s, x, there);
        }
        top = vmaxvq_p_s32(top, x, there);
    }
    for (int32_t s = 0; s < keys; s += 4) {
        const mve_pred16_t there = vctp32q((uint32_t)(keys - s));
        const int32x4_t below = vsubq_s32(vdupq_n_s32(top), vldrwq_z_s32(score + s, there));
        const int32x4_t index = vrmulhq_s32(vshlq_r_s32(below, shift), vdupq_n_s32(mul));
        const uint32x4_t at = vreinterpretq_u32_s32(vminq_s32(index, vdupq_n_s32(ECG_EXP_ENTRIES - 1)));
        const uint32x4_t w = vldrhq_gather_shifted_offset_z_u32(table, at, there);
        sum = vaddvaq_p_u32(sum, w, there);
        vstrhq_p_u32(e + s, w, there);
    }
    return (int32_t)sum;
}

/* Weighted sums of four rows of v, of which only `rows` are there: the last one then comes again. */
static NOINLINE int32x4_t weighted(const uint16_t *e, int32_t keys, const int8_t *v0, int32_t pitch,
                                   int32_t rows)
{
    const int8_t *v1 = rows > 1 ? v0 + pitch : v0, *v2 = rows > 2 ? v1 + pitch : v1;
    const int8_t *v3 = rows > 3 ? v2 + pitch : v2;
    int32_t a = 0, b = 0, c = 0, d = 0;
    for (int32_t eights = keys / 8; eights > 0; eights--) {
        const int16x8_t w = vldrhq_s16((const int16_t *)e);
        a = vmladavaq_s16(a, w, vldrbq_s16(v0));
        b = vmladavaq_s16(b, w, vldrbq_s16(v1));
        c = vmladavaq_s16(c, w, vldrbq_s16(v2));
        d = vmladavaq_s16(d, w, vldrbq_s16(v3));
        __asm__("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d));       /* else the compiler keeps them in a vector */
        e += 8, v0 += 8, v1 += 8, v2 += 8, v3 += 8;
    }
    if (keys & 7) {
        const mve_pred16_t there = vctp16q((uint32_t)(keys & 7));
        const int16x8_t w = vldrhq_z_s16((const int16_t *)e, there);
        a = vmladavaq_s16(a, w, vldrbq_z_s16(v0, there));
        b = vmladavaq_s16(b, w, vldrbq_z_s16(v1, there));
        c = vmladavaq_s16(c, w, vldrbq_z_s16(v2, there));
        d = vmladavaq_s16(d, w, vldrbq_z_s16(v3, there));
    }
    const int32_t sum[ROWS] = {a, b, c, d};
    return vldrwq_s32(sum);
}

/* Outputs of a query of a head from the weights of its maps. v: of the head's first row, the first key;
 * out: too. */
static NOINLINE void outputs(uint16_t *const e[2], const int32_t factor[2], int pair, int32_t keys,
                             const int8_t *v, int32_t v_pitch, int8_t *out, int32_t out_pitch, int32_t width)
{
    const uint32x4_t to = vmulq_n_u32(vidupq_n_u32(0, 1), (uint32_t)out_pitch);
    for (; width > 0; width -= ROWS) {
        const int32x4_t sum = weighted(e[0], keys, v, v_pitch, width);
        if (pair) {
            int32_t one[ROWS], two[ROWS];
            vstrwq_s32(one, sum);
            vstrwq_s32(two, weighted(e[1], keys, v, v_pitch, width));
            for (int32_t i = 0; i < ROWS && i < width; i++)
                out[i * out_pitch] = ecg_attention_out2(one[i], factor[0], two[i], factor[1]);
        } else {
            /* 2^8 output codes are the high half of sum * factor */
            const int32x4_t high = vmulhq_s32(sum, vdupq_n_s32(factor[0]));
            const int32x4_t code = vshrq_n_s32(vaddq_n_s32(high, 128), 8);
            const int32x4_t held = vmaxq_s32(vminq_s32(code, vdupq_n_s32(127)), vdupq_n_s32(-128));
            vstrbq_scatter_offset_p_s32(out, to, held, vctp32q((uint32_t)width));
        }
        v += ROWS * v_pitch;
        out += ROWS * out_pitch;
    }
}

/* layer: ecg_attention_layer. in: q, k, v (, q2, k2); every key that a query of the output sees is in k
 * and v. scratch, in bytes, of d * leads rounded up to 16, and of `keys` that a query sees, rounded up to
 * 8: paired * d * leads for each map; d * leads; 4 * keys; 2 * keys for each map. */
void ecg_attention_mve(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_attention_layer *a = layer;
    const ecg_view *v = &in[2];
    const int32_t depth = a->d * a->leads, vectors = (depth + LANES - 1) & -LANES, width = a->dv * a->leads;
    const int maps = a->pair ? 2 : 1;
    sorted k[2] = {{scratch, a->paired, -1, {0, 0}},
                   {(int8_t *)scratch + a->paired * vectors, a->paired, -1, {0, 0}}};
    int8_t *const query = (int8_t *)scratch + maps * a->paired * vectors;
    int32_t *const score = (int32_t *)(query + vectors);
    memset(query, 0, (size_t)vectors);
    for (int32_t head = 0; head < a->heads; head++) {
        for (int32_t t = out->first; t < out->end; t++) {
            const ecg_range see = ecg_attention_keys(a, &in[1], t);
            const int32_t keys = see.to - see.from, room = (keys + 7) & -8;
            const int32_t offsets = 2 * a->size - 1;
            const int32_t *bias = a->bias ? a->bias + head * offsets + (see.from - t + a->size - 1) : NULL;
            uint16_t *const e[2] = {(uint16_t *)(score + room), (uint16_t *)(score + room) + room};
            int32_t factor[2] = {0, 0};
            for (int map = 0; map < maps; map++) {
                const ecg_view *q = &in[3 * map];
                const int8_t *from = q->data + head * depth * q->pitch + (t - q->first);
                for (int32_t r = 0; r < depth; r++) {
                    query[r] = *from;
                    from += q->pitch;
                }
                sort(&k[map], a, q + 1, head, see);
                scores(&k[map], query, depth, see, score);
                const int32_t sum = weights(a->table, map ? a->score_mul2 : a->score_mul,
                                            map ? a->score_shift2 : a->score_shift, score, bias, keys,
                                            e[map]);
                factor[map] = ecg_attention_factor(sum, map ? a->out_mul2 : a->out_mul);
            }
            outputs(e, factor, a->pair, keys,
                    v->data + head * width * v->pitch + (see.from - v->first), v->pitch,
                    out->data + head * width * out->pitch + (t - out->first), out->pitch, width);
        }
    }
}
#endif
