/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention for the DSP extension: two products in one instruction. ecg_attention() is its definition.
 *
 * A block of queries at a time. Scores pair rows (channels): four keys of two rows are brought together once for all
 * queries of the block, then two queries meet four keys in eight sums. Weighted sums pair columns: a word of v holds
 * four keys, its even and its odd bytes meet the weights of keys 0, 2 and 1, 3, so weights are stored in that order.
 *
 * Rows of scores come in twos: two queries, or the two maps of one query. Four scores become four weights, half the
 * words, and the weights of both rows lie side by side where the first row's scores were:
 *
 *     words 4 i .. 4 i + 3: first row's weights of keys (4 i, 4 i + 2), (4 i + 1, 4 i + 3), then the second row's
 *
 * Nothing is read behind a row of q, k or v: the last four keys are the last four there are, and those among them that
 * had their turn get weight 0.
 */
#include "ecg_attention.h"
#include "ecg_dsp.h"

enum { FOUR = 4, MOST = 8 };        /* keys that meet at once; queries of a block */

#define ONES 0x00010001u    /* the pair (1, 1): with it SMLAD adds up a pair */

/* two words from an address that is a multiple of 8: one LDRD */
static inline uint64_t load_two(const uint32_t *at)
{
    uint64_t words;
    memcpy(&words, __builtin_assume_aligned(at, 8), 8);
    return words;
}

static inline uint32_t both(int32_t first, int32_t second)
{
    return ecg_firsts((uint32_t)first, (uint32_t)second);
}

static inline int32_t least(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static inline int32_t most(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

/* Four keys of all rows as pairs of rows: keys 0, 1, 2, 3 of rows 0 and 1, then of rows 2 and 3 ... An odd row at the
 * end is its own partner; its query has 0 there. */
static void pair_keys(const int8_t *row, int32_t pitch, int32_t depth, uint32_t *to)
{
    for (; depth > 0; depth -= 2) {
        const uint32_t a = ecg_load4(row), b = ecg_load4(depth > 1 ? row + pitch : row);
        const uint32_t a02 = ecg_even(a), a13 = ecg_odd(a), b02 = ecg_even(b), b13 = ecg_odd(b);
        to[0] = ecg_firsts(a02, b02);
        to[1] = ecg_firsts(a13, b13);
        to[2] = ecg_seconds(a02, b02);
        to[3] = ecg_seconds(a13, b13);
        row += 2 * pitch;
        to += 4;
    }
}

/* Two queries, `apart` columns from one another, as pairs of rows: both of rows 0 and 1, then of rows 2 and 3 ... */
static void pair_queries(const int8_t *row, int32_t pitch, int32_t depth, int32_t apart, uint32_t *to)
{
    for (; depth > 1; depth -= 2) {
        to[0] = both(row[0], row[pitch]);
        to[1] = both(row[apart], row[pitch + apart]);
        row += 2 * pitch;
        to += 2;
    }
    if (depth) {
        to[0] = both(row[0], 0);
        to[1] = both(row[apart], 0);
    }
}

/* Scores of two queries a and b at four keys. */
static void score(const uint32_t *k, const uint32_t *q, int32_t pairs, int32_t *a, int32_t *b)
{
    int32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
    for (const uint32_t *end = q + 2 * pairs; q < end; q += 2, k += 4) {
        const uint64_t two = load_two(q), k01 = load_two(k), k23 = load_two(k + 2);
        const uint32_t qa = (uint32_t)two, qb = (uint32_t)(two >> 32);
        a0 = ecg_smlad(qa, (uint32_t)k01, a0);
        b0 = ecg_smlad(qb, (uint32_t)k01, b0);
        a1 = ecg_smlad(qa, (uint32_t)(k01 >> 32), a1);
        b1 = ecg_smlad(qb, (uint32_t)(k01 >> 32), b1);
        a2 = ecg_smlad(qa, (uint32_t)k23, a2);
        b2 = ecg_smlad(qb, (uint32_t)k23, b2);
        a3 = ecg_smlad(qa, (uint32_t)(k23 >> 32), a3);
        b3 = ecg_smlad(qb, (uint32_t)(k23 >> 32), b3);
    }
    a[0] = a0, a[1] = a1, a[2] = a2, a[3] = a3;
    b[0] = b0, b[1] = b1, b[2] = b2, b[3] = b3;
}

/* The largest of n scores, after `bias` was added to them unless it is NULL. */
static int32_t largest(int32_t *s, const int32_t *bias, int32_t n)
{
    int32_t top = INT32_MIN;
    for (int32_t i = 0; bias && i < n; i++)
        s[i] += bias[i];
    for (const int32_t *end = s + n; s < end; s++)
        top = most(*s, top);
    return top;
}

/* Weights of four scores: of 0 and 2 in pair[0], of 1 and 3 in pair[1]. */
static inline void exponentials(const uint16_t *table, int32_t mul, unsigned shift, int32_t top, const int32_t *s,
                                uint32_t pair[2])
{
    uint32_t e[FOUR];
    for (int i = 0; i < FOUR; i++)
        e[i] = table[ecg_clamp(ecg_mulhi((int32_t)(((uint32_t)top - (uint32_t)s[i]) << shift), mul), 0,
                               ECG_EXP_ENTRIES - 1)];
    pair[0] = ecg_firsts(e[0], e[2]);
    pair[1] = ecg_firsts(e[1], e[3]);
}

/* n >= 4 scores become weights from e on. Returns their sum. */
static int32_t weights(const uint16_t *table, int32_t mul, unsigned shift, int32_t top, const int32_t *s, int32_t n,
                       uint32_t *e)
{
    int32_t sum = 0;
    uint32_t pair[2];
    for (const int32_t *last = s + n - FOUR; s < last; s += FOUR, e += FOUR) {
        exponentials(table, mul, shift, top, s, pair);
        e[0] = pair[0], e[1] = pair[1];
        sum = ecg_smlad(pair[1], ONES, ecg_smlad(pair[0], ONES, sum));
    }
    const int32_t twice = -n & 3;       /* keys of the last four that had their turn */
    exponentials(table, mul, shift, top, s - twice, pair);
    e[0] = pair[0] & (twice > 2 ? 0 : twice > 0 ? 0xffff0000u : 0xffffffffu);
    e[1] = pair[1] & (twice > 1 ? 0xffff0000u : 0xffffffffu);
    return ecg_smlad(e[1], ONES, ecg_smlad(e[0], ONES, sum));
}

/* The weight of key i of n becomes 0. Returns what it was. */
static int32_t forget(uint32_t *e, int32_t n, int32_t i)
{
    const int32_t four = i & ~3, lane = four + FOUR > n ? i - (n - FOUR) : i & 3, place = 8 * (lane & 2);
    uint32_t *const pair = e + four + (lane & 1);
    const uint32_t was = *pair >> place & 0xffffu;
    *pair -= was << place;
    return (int32_t)was;
}

/* Four more keys: sums of row a and b over v0, then over v1. */
static inline void add_four(const uint32_t *e, const int8_t *v0, const int8_t *v1, int32_t sum[4])
{
    const uint64_t a = load_two(e), b = load_two(e + 2);
    const uint32_t x = ecg_load4(v0), y = ecg_load4(v1);
    const uint32_t x02 = ecg_even(x), x13 = ecg_odd(x), y02 = ecg_even(y), y13 = ecg_odd(y);
    sum[0] = ecg_smlad(x13, (uint32_t)(a >> 32), ecg_smlad(x02, (uint32_t)a, sum[0]));
    sum[1] = ecg_smlad(x13, (uint32_t)(b >> 32), ecg_smlad(x02, (uint32_t)b, sum[1]));
    sum[2] = ecg_smlad(y13, (uint32_t)(a >> 32), ecg_smlad(y02, (uint32_t)a, sum[2]));
    sum[3] = ecg_smlad(y13, (uint32_t)(b >> 32), ecg_smlad(y02, (uint32_t)b, sum[3]));
}

/* Outputs of two rows of n >= 4 weights. queries: 2 two queries, 1 only the first, 0 one query's two maps. */
static void values(const uint32_t *e, int32_t n, const int32_t factor[2], const int8_t *v, int32_t v_pitch,
                   int32_t width, int8_t *out, int32_t out_pitch, int queries)
{
    const int32_t twice = -n & 3;
    for (int32_t row = 0; row < width; row += 2) {
        const int8_t *v0 = v, *v1 = row + 1 < width ? v + v_pitch : v;
        const uint32_t *at = e;
        int32_t sum[4] = {0, 0, 0, 0};
        for (const int8_t *last = v + n - FOUR; v0 < last; v0 += FOUR, v1 += FOUR, at += FOUR)
            add_four(at, v0, v1, sum);
        add_four(at, v0 - twice, v1 - twice, sum);
        for (int i = 0; i < 4 && row + i / 2 < width; i += 2) {
            if (queries) {
                out[0] = ecg_attention_out((int64_t)sum[i] * factor[0]);
                if (queries == 2)
                    out[1] = ecg_attention_out((int64_t)sum[i + 1] * factor[1]);
            } else {
                out[0] = ecg_attention_out((int64_t)sum[i] * factor[0] + (int64_t)sum[i + 1] * factor[1]);
            }
            out += out_pitch;
        }
        v += 2 * v_pitch;
    }
}

/* A block of queries of a head: the keys of each, and of all of them. */
typedef struct {
    int32_t head, t, count;
    ecg_range own[MOST], all;
} block;

/* Columns that rows first and last have to do with, at least four. */
static ecg_range reach(const block *b, int32_t first, int32_t last)
{
    ecg_range r = {b->own[first].from, b->own[least(last, b->count - 1)].to};
    r.from = least(r.from, b->all.to - FOUR);
    r.to = most(r.to, r.from + FOUR);
    return r;
}

static block take(const ecg_attention_layer *a, const ecg_view *keys, int32_t head, int32_t t, int32_t end)
{
    block b = {.head = head, .t = t, .count = least(end - t, least(a->block, MOST))};
    if (a->window == ECG_BLOCK)
        b.count = least(b.count, a->size - t % a->size);
    for (int32_t i = 0; i < b.count; i++)
        b.own[i] = ecg_attention_keys(a, keys, t + i);
    b.all.from = least(b.own[0].from, keys->end - FOUR);
    b.all.to = most(b.own[b.count - 1].to, b.all.from + FOUR);
    return b;
}

/* Scores of a block in one map: those of query i from rows + i * stride on. pairs: room for a block of queries and for
 * four keys. */
static void scores(const ecg_attention_layer *a, const ecg_view *q, const ecg_view *k, const block *b, int32_t *rows,
                   int32_t stride, uint32_t *pairs)
{
    const int32_t depth = a->d * a->leads, words = depth + (depth & 1);     /* of two paired queries */
    const int8_t *query = q->data + b->head * depth * q->pitch + (b->t - q->first);
    const int8_t *key = k->data + b->head * depth * k->pitch - k->first;
    uint32_t *const keys = pairs + a->block / 2 * words;
    for (int32_t i = 0; i < b->count; i += 2)
        pair_queries(query + i, q->pitch, depth, i + 1 < b->count, pairs + i / 2 * words);
    for (int32_t s = b->all.from, last = b->all.to - FOUR, done = 0; !done; s += FOUR) {
        done = s >= last;
        s = done ? last : s;
        pair_keys(key + s, k->pitch, depth, keys);
        for (int32_t i = 0; i < b->count; i += 2) {
            const ecg_range r = reach(b, i, i + 1);
            if (r.from < s + FOUR && s < r.to) {
                int32_t *const to = rows + i * stride + (s - b->all.from);
                score(keys, pairs + i / 2 * words, words / 2, to, to + stride);
            }
        }
    }
}

/* Scores of query i of a block, from key r.from on, become weights at e. Returns the factor of their sums. */
static int32_t soften(const ecg_attention_layer *a, const block *b, int32_t i, ecg_range r, int second, int32_t *s,
                      uint32_t *e)
{
    const ecg_range own = b->own[i];
    const int32_t n = r.to - r.from, before = own.from - r.from, behind = own.to - r.from;
    const int32_t *bias = a->bias ? a->bias + b->head * (2 * a->size - 1) + (own.from - b->t - i + a->size - 1) : NULL;
    const int32_t top = largest(s + before, bias, behind - before);
    int32_t sum = second ? weights(a->table, a->score_mul2, a->score_shift2, top, s, n, e)
                         : weights(a->table, a->score_mul, a->score_shift, top, s, n, e);
    for (int32_t at = 0; at < before; at++)
        sum -= forget(e, n, at);
    for (int32_t at = behind; at < n; at++)
        sum -= forget(e, n, at);
    return second ? -ecg_attention_factor(sum, a->out_mul2) : ecg_attention_factor(sum, a->out_mul);
}

/* layer: ecg_attention_layer. in: q, k, v (, q2, k2); every key that a query of the output sees is in k and v.
 * scratch, in words, of `keys` that the queries of a block see together, at least 4, and d * leads rounded up to even:
 * (block / 2 + 2) * d * leads, then block * (keys + 4), rounded down to even, for each map. */
void ecg_attention_dsp(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_attention_layer *a = layer;
    const ecg_view *v = &in[2];
    const int32_t depth = a->d * a->leads, width = a->dv * a->leads, maps = a->pair ? 2 : 1;
    uint32_t *const pairs = scratch;
    int32_t *const rows = (int32_t *)(pairs + (a->block / 2 + 2) * (depth + (depth & 1)));
    ecg_view keys = in[1];
    keys.first = most(keys.first, v->first);
    keys.end = least(keys.end, v->end);
    if (keys.end - keys.first < FOUR) {
        ecg_attention(layer, in, out, scratch);
        return;
    }
    for (int32_t head = 0; head < a->heads; head++) {
        block b;
        for (int32_t t = out->first; t < out->end; t += b.count) {
            b = take(a, &keys, head, t, out->end);
            const int32_t stride = (b.all.to - b.all.from + 4) & ~1;
            scores(a, &in[0], &in[1], &b, rows, maps * stride, pairs);
            if (a->pair)
                scores(a, &in[3], &in[4], &b, rows + stride, maps * stride, pairs);
            for (int32_t i = 0; i < b.count; i += 3 - maps) {
                const int32_t other = a->pair ? i : least(i + 1, b.count - 1);
                const ecg_range r = reach(&b, i, other);
                const int32_t skip = r.from - b.all.from;
                int32_t *const row = rows + i * maps * stride;
                uint32_t *const e = (uint32_t *)row + (skip & ~1);
                int32_t factor[2];
                factor[0] = soften(a, &b, i, r, 0, row + skip, e);      /* first: the second row's weights go over it */
                factor[1] = soften(a, &b, other, r, a->pair, row + stride + skip, e + 2);
                values(e, r.to - r.from, factor, v->data + head * width * v->pitch + (r.from - v->first), v->pitch, width,
                       out->data + head * width * out->pitch + (t + i - out->first), out->pitch,
                       a->pair ? 0 : 1 + (other > i));
            }
        }
    }
}
