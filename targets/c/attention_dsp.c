/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention for the DSP extension: two products in one instruction. ecg_attention() is its definition.
 *
 * A block of queries at a time. Scores pair rows (channels): four keys of two rows are brought together
 * once for all queries of the block, then two queries meet four keys in eight sums. Weighted sums pair
 * columns: a word of v holds four keys, its even and its odd bytes meet the weights of keys 0, 2 and 1, 3,
 * so weights are stored in that order.
 *
 * Rows of scores come in twos: two queries, or the two maps of one query. Four scores become four weights,
 * half the words, and the weights of both rows lie side by side where the first row's scores were:
 *
 *     words 4 i .. 4 i + 3: the first row's of keys (4 i, 4 i + 2), (4 i + 1, 4 i + 3), then the second's
 *
 * Nothing is read behind a row of q, k or v: the last four keys are the last four there are, and those
 * among them that had their turn get weight 0. */
#include "ecg_attention_dsp.h"

/* a function of its own: inside of its caller there are too few registers for its loops */
#if defined(__GNUC__)
#define ECG_CALL __attribute__((noinline))
#else
#define ECG_CALL
#endif

enum { MOST = 8 };      /* queries that a block has at most */

#define ONES 0x00010001u    /* the pair (1, 1): with it SMLAD adds up a pair */

/* two words to an address that is a multiple of 8: one STRD */
static inline void store_two(uint32_t *at, uint32_t first, uint32_t second)
{
    const uint64_t words = (uint64_t)second << 32 | first;
    memcpy(__builtin_assume_aligned(at, 8), &words, 8);
}

static inline int32_t least(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static inline int32_t most(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

/* Words a and b, four keys of two rows, as four pairs of rows. */
static inline void pair_four(uint32_t a, uint32_t b, uint32_t *to)
{
    const uint32_t a02 = ecg_even(a), a13 = ecg_odd(a), b02 = ecg_even(b), b13 = ecg_odd(b);
    store_two(to, ecg_firsts(a02, b02), ecg_firsts(a13, b13));
    store_two(to + 2, ecg_seconds(a02, b02), ecg_seconds(a13, b13));
}

/* Four keys of all rows as pairs of rows: keys 0, 1, 2, 3 of rows 0 and 1, then of rows 2 and 3 ... The
 * first `skip` are left out, 0 follows the others. A last odd row has 0 as its partner. */
static void pair_keys(const int8_t *row, int32_t pitch, int32_t depth, int32_t skip, uint32_t *to)
{
    skip *= 8;
    for (; depth > 1; depth -= 2) {
        pair_four(ecg_load4(row) >> skip, ecg_load4(row + pitch) >> skip, to);
        row += 2 * pitch;
        to += FOUR;
    }
    if (depth)
        pair_four(ecg_load4(row) >> skip, 0, to);
}

static inline uint32_t two_codes(const int8_t *at)
{
    uint16_t codes;
    memcpy(&codes, at, 2);
    return codes;
}

/* Two queries, or one twice, as pairs of rows: both of rows 0 and 1, then of rows 2 and 3 ... A last odd
 * row is its own partner: that of the keys is 0. */
static void pair_queries(const int8_t *row, int32_t pitch, int32_t depth, int two, uint32_t *to)
{
    for (; two && depth > 1; depth -= 2) {
        const uint32_t codes = ecg_firsts(two_codes(row), two_codes(row + pitch));
        store_two(to, ecg_even(codes), ecg_odd(codes));
        row += 2 * pitch;
        to += 2;
    }
    for (; depth > 0; depth -= 2) {
        const int8_t *below = depth > 1 ? row + pitch : row;
        to[0] = ecg_firsts((uint32_t)row[0], (uint32_t)below[0]);
        to[1] = ecg_firsts((uint32_t)row[two], (uint32_t)below[two]);
        row += 2 * pitch;
        to += 2;
    }
}

/* The largest of n scores, after `bias` was added to them unless it is NULL. */
static int32_t largest(int32_t *s, const int32_t *bias, int32_t n)
{
    for (int32_t i = 0; bias && i < n; i++)
        s[i] += bias[i];
    int32_t top = *s;
    for (; n > 1; n -= 2, s += 2)
        top = most(most(s[0], top), s[1]);
    return n ? most(*s, top) : top;
}

static inline uint32_t weight(const uint16_t *table, int32_t mul, unsigned shift, int32_t top, int32_t score)
{
    return table[ecg_usat10(ecg_mulhi((int32_t)(((uint32_t)top - (uint32_t)score) << shift), mul))];
}

/* n >= 4 scores become weights from e on. Returns their sum. */
static int32_t weights(const uint16_t *table, int32_t mul, unsigned shift, int32_t top, const int32_t *s,
                       int32_t n, uint32_t *e)
{
    uint32_t even = 0xffffffffu, odd = 0xffffffffu;     /* what counts */
    int32_t sum = 0;
    for (;; n -= FOUR) {
        if (n < FOUR) {         /* the last four, among them 4 - n keys that had their turn */
            s -= FOUR - n;
            even = n < 2 ? 0 : 0xffff0000u;
            odd = n < 3 ? 0xffff0000u : 0xffffffffu;
        }
        even &= ecg_firsts(weight(table, mul, shift, top, s[0]), weight(table, mul, shift, top, s[2]));
        odd &= ecg_firsts(weight(table, mul, shift, top, s[1]), weight(table, mul, shift, top, s[3]));
        e[0] = even;
        e[1] = odd;
        sum = ecg_smlad(odd, ONES, ecg_smlad(even, ONES, sum));
        if (n <= FOUR)
            return sum;
        even = odd = 0xffffffffu;
        s += FOUR;
        e += FOUR;
    }
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

/* Keys of a head and a map that lie paired at `at`: `have`, of at most a->paired. */
typedef struct {
    uint32_t *at;
    int32_t head;
    ecg_range have;
} paired;

/* A call, and the block of queries of a head that it is at. */
typedef struct {
    const ecg_attention_layer *a;
    const ecg_view *in;
    int32_t first, end;         /* keys that there are */
    int32_t depth, words;       /* rows of a head of q; words of two paired queries */
    paired keys[2];             /* one for each map */
    uint32_t *queries;
    int32_t head, t, count;
    int32_t until;              /* queries in front of it have the same keys as those of the block before */
    ecg_range own[MOST], two[MOST / 2], all;    /* keys of each query, of two together, of the block */
} work;

/* Keys of queries first to last of the block, at least four. */
static ECG_CALL ecg_range reach(const work *w, int32_t first, int32_t last)
{
    const int32_t from = least(w->own[first].from, w->end - FOUR);
    return (ecg_range){from, most(w->own[last].to, from + FOUR)};
}

/* The block of queries from t on, of those before `end`. */
static void take(work *w, int32_t t, int32_t end)
{
    const ecg_attention_layer *a = w->a;
    const ecg_view keys = {.first = w->first, .end = w->end};
    w->t = t;
    if (t < w->until) {
        w->count = least(w->until - t, a->block);
        return;
    }
    if (a->window == ECG_GLOBAL)
        w->until = end;
    if (a->window == ECG_BLOCK)
        w->until = end = least(end, t + a->size - t % a->size);
    w->count = least(end - t, a->block);
    for (int32_t i = 0; i < w->count; i++)
        w->own[i] = ecg_attention_keys(a, &keys, t + i);
    for (int32_t i = 0; i < w->count; i += 2)
        w->two[i / 2] = reach(w, i, least(i + 1, w->count - 1));
    w->all = reach(w, 0, w->count - 1);
}

/* Pairs the keys from `from` on, as many as there is room for, unless all up to the block's last are
 * there. */
static void provide(const work *w, paired *p, const ecg_view *k, int32_t from)
{
    if (p->head == w->head && p->have.from <= from && w->all.to <= p->have.to)
        return;
    from = least(from, w->end - FOUR);
    p->head = w->head;
    p->have.from = from;
    p->have.to = least(from + w->a->paired, w->end);
    const int8_t *const row = k->data + w->head * w->depth * k->pitch;
    uint32_t *at = p->at;
    for (int32_t s = from; s < p->have.to; s += FOUR) {
        const int32_t start = least(s, p->have.to - FOUR);
        pair_keys(row + (start - k->first), k->pitch, w->depth, s - start, at);
        at += 2 * w->words;
    }
}

/* Scores of queries i and i + 1 of the block at those of their keys that are paired. */
static void meet(const work *w, const paired *p, int32_t i, int32_t *row, int32_t stride)
{
    const ecg_range r = w->two[i / 2];
    const int32_t from = most(r.from - p->have.from, 0) & ~3, end = least(r.to, p->have.to) - p->have.from;
    const uint32_t *const queries = w->queries + i / 2 * w->words;
    if (from < end)
        ecg_attention_score(p->at + from / 2 * w->words, queries, queries + w->words,
                            row + (p->have.from + from - w->all.from), 4 * stride, (end - from + 3) / FOUR);
}

/* Scores of the block in a map: that of query i at key s at rows[i * stride + s - all.from]. */
static ECG_CALL void scores(work *w, int map, int32_t *rows, int32_t stride)
{
    const ecg_view *q = &w->in[3 * map], *k = q + 1;
    paired *const p = &w->keys[map];
    const int8_t *const query = q->data + w->head * w->depth * q->pitch + (w->t - q->first);
    for (int32_t i = 0; i < w->count; i += 2)
        pair_queries(query + i, q->pitch, w->depth, i + 1 < w->count, w->queries + i / 2 * w->words);
    for (int32_t from = w->all.from; from < w->all.to; from = p->have.to) {
        provide(w, p, k, from);
        for (int32_t i = 0; i < w->count; i += 2)
            meet(w, p, i, rows + i * stride, stride);
    }
}

/* Scores s of query i of the block, at the keys of r, become weights at e. Returns the factor of their
 * sums. */
static ECG_CALL int32_t soften(const work *w, int32_t i, ecg_range r, int map, int32_t *s, uint32_t *e)
{
    const ecg_attention_layer *a = w->a;
    const ecg_range own = w->own[i];
    const int32_t n = r.to - r.from, before = own.from - r.from, behind = own.to - r.from;
    const int32_t offsets = 2 * a->size - 1;
    const int32_t *bias = a->bias ? a->bias + w->head * offsets + (own.from - w->t - i + a->size - 1) : NULL;
    const int32_t top = largest(s + before, bias, behind - before);
    int32_t sum = weights(a->table, map ? a->score_mul2 : a->score_mul,
                          map ? a->score_shift2 : a->score_shift, top, s, n, e);
    for (int32_t at = before ? 0 : behind; at < n; at = at + 1 == before ? behind : at + 1)
        sum -= forget(e, n, at);
    return map ? -ecg_attention_factor(sum, a->out_mul2) : ecg_attention_factor(sum, a->out_mul);
}

/* Outputs of query i of the block and of `other`, the next one or i itself, from their scores: in a pair
 * i's in both maps, else those of both queries. The second one's lie `stride` behind. */
static void outputs(const work *w, const ecg_view *out, int32_t i, int32_t other, int32_t *row,
                    int32_t stride)
{
    const ecg_attention_layer *a = w->a;
    const ecg_view *v = &w->in[2];
    const int32_t width = a->dv * a->leads;
    const ecg_range r = a->pair ? reach(w, i, i) : w->two[i / 2];
    const int32_t skip = r.from - w->all.from;
    uint32_t *const e = (uint32_t *)row + (skip & ~1);
    ecg_weighted x = {.v_pitch = v->pitch, .out_pitch = out->pitch, .e = e,
                .v = v->data + w->head * width * v->pitch + (r.from - v->first),
                .out = out->data + w->head * width * out->pitch + (w->t + i - out->first),
                .rest = r.to - r.from - FOUR, .twice = (r.from - r.to) & 3, .apart = a->pair ? -1 : other - i,
                .v_step = 2 * v->pitch};
    /* the second row's weights go over the first one's scores */
    x.factor[0] = soften(w, i, r, 0, row + skip, e);
    x.factor[1] = soften(w, other, r, a->pair, row + stride + skip, e + 2);
    x.end = x.v + width / 2 * x.v_step;
    if (width > 1)
        ecg_attention_values(&x);
    if (width & 1) {
        x.v_pitch = x.out_pitch = x.v_step = 0;
        ecg_attention_values(&x);
    }
}

/* layer: ecg_attention_layer. in: q, k, v (, q2, k2); every key that a query of the output sees is in k
 * and v, and at least four keys are, or the layer is one for ecg_attention(). scratch, in words, of d *
 * leads rounded up to even, and of `keys` that the queries of a block see together, at least 4: paired / 2
 * * d * leads for each map; block / 2 * d * leads; block * (keys + 8), rounded down to even, for each. */
void ecg_attention_dsp(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_attention_layer *a = layer;
    const int32_t maps = a->pair ? 2 : 1;
    work w;
    w.a = a;
    w.in = in;
    w.first = most(in[1].first, in[2].first);
    w.end = least(in[1].end, in[2].end);
    w.depth = a->d * a->leads;
    w.words = w.depth + (w.depth & 1);
    w.queries = scratch;
    for (int map = 0; map < maps; map++) {
        w.keys[map].at = w.queries;
        w.keys[map].head = -1;
        w.queries += a->paired / 2 * w.words;
    }
    int32_t *const rows = (int32_t *)(w.queries + a->block / 2 * w.words) + FOUR;
    for (w.head = 0; w.head < a->heads; w.head++) {
        w.until = out->first;
        for (int32_t t = out->first; t < out->end; t += w.count) {
            take(&w, t, out->end);
            const int32_t stride = (w.all.to - w.all.from + 2 * FOUR) & ~1;
            for (int map = 0; map < maps; map++)
                scores(&w, map, rows + map * stride, maps * stride);
            for (int32_t i = 0; i < w.count; i += 3 - maps)
                outputs(&w, out, i, a->pair ? i : least(i + 1, w.count - 1), rows + i * maps * stride,
                        stride);
        }
    }
}
