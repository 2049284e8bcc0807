/* SPDX-License-Identifier: Apache-2.0 */
#include "ecg_rpeak.h"

enum { LEARN_S = 2, SILENCE_S = 3, FLOOR_UV = 20 };
#define LONG_AGO (1u << 24)     /* samples: beyond every threshold in time */

/* Share of the level (Q8) that a beat must reach, by gap / mean RR in sixteenths. */
static const uint8_t alpha[33] = {
    128, 128, 128, 128, 128, 128, 102, 77, 51, 51, 51, 51, 51, 51, 51, 51, 51,
    51, 51, 51, 49, 47, 45, 43, 41, 39, 38, 36, 34, 32, 30, 28, 26,
};

static void measure(ecg_rpeak *d, uint32_t fs)
{
    d->fs = (uint16_t)fs;
    d->box = (uint16_t)ecg_samples(28, (int32_t)fs);
    d->sum = (uint16_t)ecg_samples(60, (int32_t)fs);
    d->before = (uint16_t)ecg_samples(150, (int32_t)fs);
    d->after = (uint16_t)ecg_samples(170, (int32_t)fs);
    d->near = (uint16_t)ecg_samples(40, (int32_t)fs);
    d->steep = (uint16_t)ecg_samples(12, (int32_t)fs);
    d->delay = (uint16_t)((3 * d->box + d->sum - 2) / 2);
}

uint32_t ecg_rpeak_memory(uint32_t fs)
{
    ecg_rpeak d;
    measure(&d, fs);
    return (d.before + 1u) * (uint32_t)sizeof *d.feature;
}

uint32_t ecg_rpeak_history(uint32_t fs)
{
    ecg_rpeak d;
    measure(&d, fs);
    return (uint32_t)d.after + d.delay + d.near + d.steep + 1u;
}

uint32_t ecg_rpeak_latency(uint32_t fs)
{
    ecg_rpeak d;
    measure(&d, fs);
    return (uint32_t)d.after + d.delay + d.near;
}

void ecg_rpeak_init(ecg_rpeak *d, uint32_t fs, void *memory)
{
    memset(d, 0, sizeof *d);
    d->feature = (int32_t *)memory;
    measure(d, fs);
    ecg_rpeak_reset(d);
}

void ecg_rpeak_reset(ecg_rpeak *d)
{
    static const ecg_rpeak_sums none = {0, 0, 0};

    memset(d->feature, 0, (d->before + 1u) * sizeof *d->feature);
    d->entering = d->leaving = none;
    d->now = d->level = d->noise = d->last_height = d->last_slope = 0;
    for (int i = 0; i < 8; i++) {
        d->heights[i] = 0;
        d->intervals[i] = (uint16_t)(d->fs * 4u / 5u);
    }
    d->age[0] = d->age[1] = 0;
    d->newest = 0;
    d->seen = 0;
    d->gap = LONG_AGO;
    d->had_beat = 0;
}

/* Moves the sums to the sample `back` before the newest: slope plus curvature of the signal there. */
static int32_t activity(const ecg_rpeak *d, ecg_rpeak_sums *s, const ecg_history *h, int32_t back)
{
    int32_t box = d->box;
    int32_t x0 = ecg_history_at(h, back), x1 = ecg_history_at(h, back + box);
    int32_t x2 = ecg_history_at(h, back + 2 * box), x3 = ecg_history_at(h, back + 3 * box);

    s->a += x0 - x1;
    s->b += x1 - x2;
    s->d += x2 - x3;
    return ecg_abs(s->a - s->b) + (ecg_abs(2 * s->b - s->a - s->d) >> 1);
}

/* The newest feature of the ring exceeds all the others; the one before it is looked at first. */
static int highest(const ecg_rpeak *d)
{
    const int32_t f = d->feature[d->newest];
    int32_t i = d->newest;

    for (int32_t left = d->before; left > 0; left--) {
        i = i > 0 ? i - 1 : d->before;
        if (d->feature[i] >= f)
            return 0;
    }
    return 1;
}

/* Height of the candidate whose time to be exceeded is over with the feature `now`, or 0. Two candidates
 * can wait at once: `before` < their distance <= `after` < 2 * before. */
static int32_t survivor(ecg_rpeak *d)
{
    int32_t height = 0;

    for (int i = 0; i < 2; i++) {
        if (!d->age[i])
            continue;
        if (d->now > d->height[i]) {
            d->age[i] = 0;
        } else if (++d->age[i] == d->after) {
            height = d->height[i];
            d->age[i] = 0;
        }
    }
    return height;
}

/* The feature falls, or stays: the sample before was a candidate if it exceeded the 150 ms before it. */
static void nominate(ecg_rpeak *d)
{
    int slot = d->age[0] != 0;

    if (d->now <= d->feature[d->newest] && highest(d)) {
        d->age[slot] = 1;
        d->height[slot] = d->feature[d->newest];
    }
}

/* The steepest 12 ms near the centre of the complex. */
static int32_t steepest(const ecg_rpeak *d, const ecg_history *h)
{
    int32_t centre = d->after + d->delay, slope = 0;

    for (int32_t back = centre + d->near; back >= centre - d->near - d->steep; back--)
        slope = ecg_max(slope, ecg_abs(ecg_history_at(h, back) - ecg_history_at(h, back + d->steep)));
    return slope;
}

/* (share * x) >> 8 without leaving 32 bits: x < 2^28, share <= 128 */
static int32_t share_of(int32_t x, int32_t share)
{
    return (x >> 8) * share + ((x & 255) * share >> 8);
}

static int32_t floor_height(const ecg_rpeak *d)
{
    return FLOOR_UV * d->box * d->sum;
}

/* The first 2 s: half of the largest so far is a beat. */
static int learn(ecg_rpeak *d, int32_t height, int plausible)
{
    int beat = plausible && height >= floor_height(d) && 2 * height >= d->level;

    d->level = ecg_max(d->level, height);
    for (int i = 0; i < 8; i++)
        d->heights[i] = d->level;
    if (!beat)
        d->noise += (height - d->noise) >> 3;
    return beat;
}

/* The fourth smallest of the last 8 heights. */
static int32_t fourth(const int32_t *heights)
{
    int32_t sorted[8];

    for (int i = 0; i < 8; i++) {
        int j = i;
        for (; j > 0 && sorted[j - 1] > heights[i]; j--)
            sorted[j] = sorted[j - 1];
        sorted[j] = heights[i];
    }
    return sorted[3];
}

/* What a beat at this distance from the last one must reach, above the noise. */
static int32_t threshold(const ecg_rpeak *d)
{
    uint32_t sum = 0, share;

    for (int i = 0; i < 8; i++)
        sum += d->intervals[i];
    share = 16u * d->gap / (sum >> 3);
    return share_of(d->level, alpha[share < 32 ? share : 32]) + ecg_min(d->noise, d->level >> 1);
}

/* A beat reaches the threshold; what is rejected is noise and lowers a stale level. */
static int judge(ecg_rpeak *d, int32_t height, int plausible)
{
    if (!plausible && (int32_t)d->gap < ecg_samples(280, d->fs))
        return 0;
    if (plausible && height >= ecg_max(threshold(d), floor_height(d))) {
        memmove(d->heights, d->heights + 1, 7 * sizeof *d->heights);
        d->heights[7] = ecg_min(height, 2 * d->level);
        d->level = ecg_max(fourth(d->heights), floor_height(d));
        return 1;
    }
    d->noise += (ecg_min(height, d->level) - d->noise) >> 3;
    if (d->gap > (uint32_t)SILENCE_S * d->fs) {
        d->level = ecg_max(3 * d->level >> 2, floor_height(d));
        for (int i = 0; i < 8; i++)
            d->heights[i] = ecg_min(d->heights[i], d->level);
    }
    return 0;
}

/* How far behind R the newest sample is: R is the highest sample within 40 ms of the centre, or the
 * centre itself where the complex is more than 2.5 times deeper than it is high. */
static int32_t behind_r(const ecg_rpeak *d, const ecg_history *h)
{
    int32_t centre = d->after + d->delay, highest_at = 0, highest_x = INT32_MIN, lowest_x = INT32_MAX;

    for (int32_t back = centre + d->near; back >= centre - d->near; back--) {
        int32_t x = ecg_history_at(h, back);
        if (x > highest_x) {
            highest_x = x;
            highest_at = back;
        }
        lowest_x = ecg_min(lowest_x, x);
    }
    if (5 * highest_x < -2 * lowest_x)
        highest_at = centre;
    return ecg_min(highest_at, (int32_t)d->seen - 1);   /* no R lies before the start */
}

/* Is the candidate of this height a beat? Updates level and noise, and what is known of the last beat. */
static int is_beat(ecg_rpeak *d, const ecg_history *h, int32_t height)
{
    int32_t gap = (int32_t)d->gap, fs = d->fs, slope;
    int larger, alike, too_early, t_wave, beat;

    if (gap < ecg_samples(180, fs))
        return 0;
    slope = steepest(d, h);
    larger = 5 * height >= 6 * d->last_height;
    alike = gap >= ecg_samples(220, fs) && 5 * height >= 4 * d->last_height && 5 * slope >= 4 * d->last_slope;
    too_early = gap < ecg_samples(280, fs) && !larger && !alike;
    t_wave = gap < ecg_samples(400, fs) && 16 * slope < 7 * d->last_slope;
    if ((int32_t)d->seen - 1 - d->after < LEARN_S * fs + d->delay)
        beat = learn(d, height, !too_early && !t_wave);
    else
        beat = judge(d, height, !too_early && !t_wave);
    if (!beat)
        return 0;
    if (d->had_beat) {
        memmove(d->intervals, d->intervals + 1, 7 * sizeof *d->intervals);
        d->intervals[7] = (uint16_t)ecg_min(ecg_max(gap, fs / 4), 2 * fs);
    }
    d->had_beat = 1;
    d->gap = 0;
    d->last_height = height;
    d->last_slope = slope;
    return 1;
}

int32_t ecg_rpeak_push(ecg_rpeak *d, const ecg_history *h)
{
    int32_t height;

    d->seen += d->seen < LONG_AGO;
    d->gap += d->gap < LONG_AGO;
    d->now += activity(d, &d->entering, h, 0);
    d->now -= activity(d, &d->leaving, h, d->sum);
    height = survivor(d);
    nominate(d);
    d->newest = (uint16_t)(d->newest < d->before ? d->newest + 1u : 0u);
    d->feature[d->newest] = d->now;
    return height > 0 && is_beat(d, h, height) ? behind_r(d, h) : -1;
}
