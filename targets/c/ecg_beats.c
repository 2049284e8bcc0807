/* SPDX-License-Identifier: Apache-2.0 */
#include "ecg_beats.h"

#include "ecg_rpeak.h"

enum { SHORT = 16, LONG = 64, LONGEST_S = 10 };     /* intervals of context; seconds of an interval at most */
enum { GUARD = 4, LIKE = 14, PATIENCE = 12, FLOOR_UV = 8 };                     /* of the template */
enum { NEXT_SHORT = 1, NEXT_LONG = 3, NEXT_PREVIOUS = 5 };      /* columns that need the next beat */

static void measure(ecg_beats *b, uint32_t fs)
{
    b->fs = (uint16_t)fs;
    b->before = (uint16_t)(260 * fs / 1000);
    b->after = (uint16_t)(140 * fs / 1000);
    b->reach = (uint16_t)(16 * fs / 1000);
    b->qrs = (uint16_t)(b->before - 100 * fs / 1000);
}

uint32_t ecg_beats_memory(uint32_t fs)
{
    ecg_beats b;
    measure(&b, fs);
    return ((uint32_t)b.before + b.after) * (uint32_t)sizeof *b.mean + LONG * (uint32_t)sizeof *b.intervals;
}

uint32_t ecg_beats_history(uint32_t fs)
{
    ecg_beats b;
    measure(&b, fs);
    return ecg_rpeak_latency(fs) + b.before + b.reach + 1u;
}

void ecg_beats_init(ecg_beats *b, uint32_t fs, void *memory)
{
    measure(b, fs);
    b->mean = (int32_t *)memory;
    b->intervals = (uint16_t *)(b->mean + b->before + b->after);
    ecg_beats_reset(b);
}

void ecg_beats_reset(ecg_beats *b)
{
    memset(b->mean, 0, ((uint32_t)b->before + b->after) * sizeof *b->mean);
    memset(b->intervals, 0, LONG * sizeof *b->intervals);
    memset(b->row, 0, sizeof b->row);
    b->r = 0;
    b->previous = b->usual = b->usual_long = 0;
    b->newest = b->unlike = b->seen = 0;
    b->told = 1;
}

/* ---- intervals */

static uint32_t interval(const ecg_beats *b, uint32_t ago)
{
    return b->intervals[(b->newest - ago) % LONG];
}

/* The upper of the middle two among the last `count` intervals: the smallest value that more than half
 * are not above. */
static uint16_t median(const ecg_beats *b, uint32_t count)
{
    uint32_t low = 1, high = (uint32_t)LONGEST_S * b->fs;

    while (low < high) {
        uint32_t middle = (low + high) / 2, below = 0;
        for (uint32_t ago = 0; ago < count; ago++)
            below += interval(b, ago) <= middle;
        if (below > count / 2)
            high = middle;
        else
            low = middle + 1;
    }
    return (uint16_t)low;
}

static int8_t ratio(int32_t a, int32_t b)
{
    return ecg_feature((64 * a + b) / (2 * b) - 32);
}

/* Columns of the beat that knows its next interval, from what was known at its R. */
static void follow(const ecg_beats *b, int32_t next, int8_t *row)
{
    row[NEXT_SHORT] = ratio(next, b->usual);
    row[NEXT_LONG] = ratio(next, b->usual_long);
    row[NEXT_PREVIOUS] = ratio(next, b->previous);
}

/* A beat `previous` samples after the last one: all columns but the template's, as if no beat followed. */
static void rr_features(ecg_beats *b, int32_t previous)
{
    int32_t change = 0;

    b->usual = median(b, SHORT);
    b->usual_long = median(b, LONG);
    for (uint32_t ago = 0; ago < SHORT; ago++)
        change += ecg_abs((int32_t)interval(b, ago) - (int32_t)interval(b, ago + 1));
    b->row[0] = ratio(previous, b->usual);
    b->row[2] = ratio(previous, b->usual_long);
    b->row[4] = ratio(previous, (int32_t)interval(b, 0));
    b->row[6] = ecg_feature(32 * change / (2 * b->usual));
    b->previous = (uint16_t)previous;
    follow(b, b->usual, b->row);
    b->newest = (uint8_t)((b->newest + 1u) % LONG);
    b->intervals[b->newest] = (uint16_t)previous;
}

/* ---- the template */

static int32_t template_at(const ecg_beats *b, int32_t i)
{
    return (b->mean[i] + (1 << (GUARD - 1))) >> GUARD;
}

/* Sum of |beat - template| from one place of the template to another; `start` is how far back in h its
 * first place is. */
static int32_t distance(const ecg_beats *b, const ecg_history *h, int32_t start, int32_t from, int32_t to)
{
    int32_t sum = 0;

    for (int32_t i = from; i < to; i++)
        sum += ecg_abs(ecg_history_at(h, start - i) - template_at(b, i));
    return sum;
}

/* The beat's place (of the template's first sample, as samples back) where its complex lies best on the
 * template. */
static int32_t aligned(const ecg_beats *b, const ecg_history *h, int32_t back, int32_t *least)
{
    int32_t length = b->before + b->after, best = 0;

    *least = INT32_MAX;
    for (int32_t start = back + b->before + b->reach; start >= back + b->before - b->reach; start--) {
        int32_t sum = distance(b, h, start, b->qrs, length);
        if (sum < *least) {
            *least = sum;
            best = start;
        }
    }
    return best;
}

/* The five columns; `row` points at them. */
static void template_features(const ecg_beats *b, const ecg_history *h, int32_t start, int32_t least,
                              int8_t *row)
{
    int32_t length = b->before + b->after, of_w, of_t;
    int64_t dot = 0, norm = 0, gain, rest = 0;

    of_w = of_t = FLOOR_UV * (length - b->qrs);
    for (int32_t i = b->qrs; i < length; i++) {
        int32_t w = ecg_history_at(h, start - i), t = template_at(b, i);
        of_w += ecg_abs(w);
        of_t += ecg_abs(t);
        dot += (int64_t)w * t;
        norm += (int64_t)t * t;
    }
    gain = ecg_floor_div64(dot * 256, norm > 0 ? norm : 1);
    for (int32_t i = b->qrs; i < length; i++) {
        int64_t left = 256 * (int64_t)ecg_history_at(h, start - i) - gain * template_at(b, i);
        rest += left < 0 ? -left : left;
    }
    row[0] = ecg_feature(32 * least / of_t);
    row[1] = ecg_feature(32 * rest / (256 * (int64_t)of_w));
    row[2] = ecg_feature((gain >> 3) - 32);
    row[3] = ecg_feature(32 * of_w / of_t - 32);
    row[4] = ecg_feature(32 * distance(b, h, start, 0, b->qrs) / of_t);
}

/* A beat like the template moves it; after 12 in a row that are not, the last one replaces it. */
static void learn(ecg_beats *b, const ecg_history *h, int32_t start, int32_t unlikeness)
{
    int32_t length = b->before + b->after, shift = 3;

    b->unlike = (uint8_t)(unlikeness < LIKE ? 0 : b->unlike + 1);
    if (b->unlike > 0 && b->unlike < PATIENCE)
        return;
    if (b->unlike) {
        b->unlike = 0;
        shift = 0;
    }
    for (int32_t i = 0; i < length; i++)
        b->mean[i] += (ecg_history_at(h, start - i) * (1 << GUARD) - b->mean[i]) >> shift;
}

static void compare(ecg_beats *b, const ecg_history *h, int32_t back)
{
    int32_t length = b->before + b->after, least, start = back + b->before;
    int8_t *row = b->row + ECG_BEATS_RR;

    if (!b->seen)
        for (int32_t i = 0; i < length; i++)
            b->mean[i] = ecg_history_at(h, start - i) * (1 << GUARD);
    start = aligned(b, h, back, &least);
    template_features(b, h, start, least, row);
    learn(b, h, start, row[0]);
}

/* ---- beats */

int ecg_beats_push(ecg_beats *b, const ecg_history *h, int32_t back, uint32_t r, int8_t *row)
{
    uint32_t longest = (uint32_t)LONGEST_S * b->fs, step = r - b->r;
    int32_t previous = (int32_t)(step < 1 ? 1 : step > longest ? longest : step);
    int complete = b->seen && !b->told;

    if (complete) {
        ecg_beats_last(b, row);
        if (b->seen > 1)                /* the first beat has no interval before it: all is usual */
            follow(b, previous, row);
    }
    if (b->seen == 1)
        for (uint32_t i = 0; i < LONG; i++)
            b->intervals[i] = (uint16_t)previous;       /* before the first one: all like it */
    if (b->seen)
        rr_features(b, previous);
    compare(b, h, back);
    b->seen = (uint8_t)(b->seen + (b->seen < 2));
    b->r = r;
    b->told = 0;
    return complete;
}

int ecg_beats_overdue(ecg_beats *b, uint32_t now, int8_t *row)
{
    uint32_t longest = (uint32_t)LONGEST_S * b->fs;

    if (b->told || now - b->r < longest + ecg_rpeak_latency(b->fs))
        return 0;
    ecg_beats_last(b, row);
    if (b->seen > 1)
        follow(b, (int32_t)longest, row);
    b->told = 1;
    return 1;
}
