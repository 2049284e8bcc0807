/* SPDX-License-Identifier: Apache-2.0 */
#include "ecg_rhythm.h"

#include "ecg_rpeak.h"

enum { GUARD = 4, ROWS = ECG_RHYTHM_STEPS + 1 };
enum { FLOOR_UV = 14, MEAN_FLOOR_UV = 11, SHARE = 7, FIRST_S = 60, LONGEST_S = 10 };

/* One beat while its P wave is sought. A place counts from the first of the row: place `back` is R. */
typedef struct {
    const ecg_rhythm *s;
    const ecg_history *h;
    int32_t r;              /* samples from R to the newest */
    int32_t q, limit;       /* last place before the complex; last sum that holds no sample of it */
    int32_t size;           /* range of the complex */
    int32_t first, last;    /* places searched */
} beat;

typedef struct {
    int32_t onset, peak, end;           /* places; peak -1: no P wave */
    int32_t height, usual;              /* microvolts */
} wave;

static void measure(ecg_rhythm *s, uint32_t fs)
{
    s->fs = (uint16_t)fs;
    s->latency = (uint16_t)ecg_rpeak_latency(fs);
    s->sum = (uint16_t)(ecg_samples(28, (int32_t)fs) | 1);
    s->back = (uint16_t)ecg_samples(420, (int32_t)fs);
}

uint32_t ecg_rhythm_memory(uint32_t fs)
{
    ecg_rhythm s;
    measure(&s, fs);
    return (s.back + 1u) * (uint32_t)sizeof *s.mean;
}

uint32_t ecg_rhythm_history(uint32_t fs)
{
    ecg_rhythm s;
    measure(&s, fs);
    return (uint32_t)s.latency + s.back + s.sum / 2u + 1u;
}

void ecg_rhythm_init(ecg_rhythm *s, uint32_t fs, void *memory)
{
    measure(s, fs);
    s->mean = (int32_t *)memory;
    ecg_rhythm_reset(s);
}

void ecg_rhythm_reset(ecg_rhythm *s)
{
    memset(s->mean, 0, (s->back + 1u) * sizeof *s->mean);
    memset(s->rows, 0, sizeof s->rows);
    s->r = 0;
    s->usual_rr = s->usual_size = 0;
    s->seen = s->newest = 0;
}

/* ---- the complex */

static int32_t ms(const beat *b, int32_t milliseconds)
{
    return ecg_samples(milliseconds, b->s->fs);
}

static int32_t sample(const beat *b, int32_t place)
{
    return ecg_history_at(b->h, b->r + b->s->back - place);
}

static int32_t slope(const beat *b, int32_t place)
{
    return ecg_abs(sample(b, place) - sample(b, place - ms(b, 12)));
}

/* The last place before the complex: back from 12 ms before R, the first 20 ms of slopes that are all
 * below a tenth of the steepest end there; 28 to 112 ms before R. */
static int32_t complex_start(const beat *b)
{
    int32_t r = b->s->back, quiet = ms(b, 20), rise = ms(b, 12), steepest = 0, calm = 0, start;
    int32_t latest = r - rise - quiet + 1, earliest = r - ms(b, 140) + ms(b, 40) - quiet + 1;

    for (int32_t i = r - ms(b, 140); i < r + ms(b, 60); i++)
        steepest = ecg_max(steepest, slope(b, i));
    start = earliest;
    for (int32_t i = latest + quiet - 1; i > earliest; i--) {
        calm = 10 * slope(b, i) < steepest ? calm + 1 : 0;
        if (calm == quiet) {
            start = i;
            break;
        }
    }
    return ecg_min(start + quiet - rise, r - ms(b, 28));
}

static int32_t complex_size(const beat *b)
{
    int32_t r = b->s->back, low = INT32_MAX, high = INT32_MIN;

    for (int32_t i = r - ms(b, 40); i < r + ms(b, 40); i++) {
        int32_t x = sample(b, i);
        low = ecg_min(low, x);
        high = ecg_max(high, x);
    }
    return high - low;
}

/* ---- bumps */

/* Sum of the signal over 28 ms around a place. */
static int32_t own(const beat *b, int32_t place)
{
    int32_t half = b->s->sum / 2, sum = 0;

    for (int32_t i = place - half; i <= place + half; i++)
        sum += sample(b, i);
    return sum;
}

/* The running mean of these sums. */
static int32_t usual(const beat *b, int32_t place)
{
    return b->s->mean[place] >> GUARD;
}

/* How high a curve rises at a place above the chord from 56 ms before it to 56 ms behind it, or to the
 * complex. */
static int32_t bump(const beat *b, int32_t curve(const beat *, int32_t), int32_t place)
{
    int32_t reach = ms(b, 56), right = ecg_min(place + reach, b->limit), left = ecg_max(place - reach, 0);
    int32_t ahead = ecg_max(right - place, 1);

    return ecg_floor_div(curve(b, place) * (reach + ahead) - curve(b, left) * ahead - curve(b, right) * reach,
                         reach + ahead);
}

/* The place of the P wave: the highest bump, or the lowest where it is more than 1.5 times as deep; 0
 * where there is none. *sign is -1 for the lowest. */
static int32_t strongest(const beat *b, int32_t *sign)
{
    int32_t up = 0, down = 0, up_at = 0, down_at = 0;

    for (int32_t i = b->first; i <= b->last; i++) {
        int32_t height = bump(b, own, i);
        if (height > up) {
            up = height;
            up_at = i;
        }
        if (height < down) {
            down = height;
            down_at = i;
        }
    }
    *sign = -2 * down > 3 * up ? -1 : 1;
    return *sign < 0 ? down_at : up_at;
}

/* The highest bump of the running mean within 12 ms of a place, among the places searched and this one. */
static int32_t usual_bump(const beat *b, int32_t place, int32_t sign)
{
    int32_t most = sign * bump(b, usual, place);

    for (int32_t i = ecg_max(place - ms(b, 12), b->first); i <= ecg_min(place + ms(b, 12), b->last); i++)
        most = ecg_max(most, sign * bump(b, usual, i));
    return most;
}

/* The place between two places where the sums lie furthest below the chord, the first such. */
static int32_t foot(const beat *b, int32_t start, int32_t stop, int32_t sign)
{
    int32_t at = start, most = 0, length = ecg_max(stop - start, 1);
    int32_t low = sign * own(b, start), rise = sign * own(b, stop) - low;

    for (int32_t i = start; i <= stop; i++) {
        int32_t below = (low - sign * own(b, i)) * length + rise * (i - start);
        if (below > most) {
            most = below;
            at = i;
        }
    }
    return at;
}

/* ---- a beat */

/* The mean of the sums before R moves by 1/2, 1/4, 1/4 and from then on 1/8 of the difference; the first
 * beat sets it. */
static void move_mean(ecg_rhythm *s, const beat *b)
{
    static const uint8_t shifts[5] = {0, 1, 2, 2, 3};
    int32_t sum = own(b, 0), half = s->sum / 2;

    for (int32_t i = 0; i <= s->back; i++) {
        if (i > 0)
            sum += sample(b, i + half) - sample(b, i - half - 1);
        s->mean[i] += (sum * (1 << GUARD) - s->mean[i]) >> shifts[s->seen];
    }
}

static wave delineate(const beat *b)
{
    wave p = {0, -1, 0, 0, 0};
    int32_t sum = b->s->sum, reach = ms(b, 100), limit = b->size * sum >> SHARE, sign, at, height, mean;

    if (b->first > b->last)
        return p;
    at = strongest(b, &sign);
    height = sign * bump(b, own, at);
    mean = usual_bump(b, at, sign);
    p.usual = ecg_floor_div(sign * mean, sum);
    if (height < ecg_max(FLOOR_UV * sum, limit) || mean < ecg_max(MEAN_FLOOR_UV * sum, limit)
        || 3 * mean < height)
        return p;
    p.peak = at;
    p.height = ecg_floor_div(sign * height, sum);
    p.onset = foot(b, ecg_max(at - reach, 0), at, sign);
    p.end = foot(b, at, ecg_max(at, ecg_min(at + reach, b->q)), sign);
    return p;
}

/* The running mean (times 16) before a value; then the value moves it. The first value is its own mean. */
static int32_t usual_value(int32_t *mean, int32_t value, int first)
{
    int32_t before;

    if (first)
        *mean = value * (1 << GUARD);
    before = ecg_max(*mean >> GUARD, 1);
    *mean += (value * (1 << GUARD) - *mean) >> 3;
    return before;
}

static void features(ecg_rhythm *s, const beat *b, const wave *p, int32_t rr, int8_t *row)
{
    int32_t size = b->size + 1, there = p->peak >= 0, fs = s->fs;

    row[0] = (int8_t)(s->seen ? 32 : -32);
    row[1] = row[2] = 0;
    if (s->seen) {
        row[1] = ecg_feature((1000 * rr / fs - 800) >> 3);
        row[2] = ecg_feature(64 * rr / usual_value(&s->usual_rr, rr, s->seen == 1) - 64);
    }
    row[3] = ecg_feature(32 * size / usual_value(&s->usual_size, size, !s->seen) - 32);
    row[4] = (int8_t)(there ? 32 : -32);
    row[5] = ecg_feature(256 * ecg_abs(p->height) / size);
    row[6] = ecg_feature(256 * ecg_abs(p->usual) / size);
    row[7] = ecg_feature(there ? 250 * (s->back - p->onset) / fs : 0);
    row[8] = ecg_feature(there ? 250 * (p->end - p->onset) / fs : 0);
}

void ecg_rhythm_push(ecg_rhythm *s, const ecg_history *h, int32_t back, uint32_t r)
{
    uint32_t step = r - s->r, most = (uint32_t)FIRST_S * s->fs;
    int32_t rr = (int32_t)(s->seen && step < most ? step : most);
    beat b = {s, h, back, 0, 0, 0, 0, 0};
    wave p;

    b.q = complex_start(&b);
    b.limit = b.q - s->sum / 2;
    b.size = complex_size(&b);
    b.first = s->back - ecg_min(ms(&b, 300), rr - ms(&b, 160) - rr / 4);
    b.last = b.q - ms(&b, 20);
    move_mean(s, &b);
    p = delineate(&b);
    s->newest = (uint8_t)((s->newest + 1u) % ROWS);
    features(s, &b, &p, ecg_min(rr, LONGEST_S * s->fs), s->rows[s->newest]);
    s->seen = (uint8_t)(s->seen + (s->seen < 4));
    s->r = r;
}

uint32_t ecg_rhythm_unknown(const ecg_rhythm *s, uint32_t now)
{
    return s->seen && now - s->r < s->latency;
}

void ecg_rhythm_sequence(const ecg_rhythm *s, uint32_t skip, int8_t *rows)
{
    uint32_t i = s->newest + 2u * ROWS - skip - (ECG_RHYTHM_STEPS - 1u);

    for (int k = 0; k < ECG_RHYTHM_STEPS; k++, i++)
        memcpy(rows + k * ECG_RHYTHM_FEATURES, s->rows[i % ROWS], ECG_RHYTHM_FEATURES);
}
