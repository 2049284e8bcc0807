/* SPDX-License-Identifier: Apache-2.0
 *
 * What the detector, the beat features and the rhythm features share: the last samples of the lead that
 * they look at, and division. One history serves them all: as long as the longest that one of them asks
 * for. */
#ifndef ECG_SIGNAL_H
#define ECG_SIGNAL_H

#include <stdint.h>
#include <string.h>

/* A ring of the front end's output, int16 microvolts of one lead; the caller owns `data`. Before the
 * start: rest. */
typedef struct {
    int16_t *data;
    uint16_t length, newest;
} ecg_history;

static inline void ecg_history_reset(ecg_history *h)
{
    memset(h->data, 0, h->length * sizeof *h->data);
    h->newest = 0;
}

static inline void ecg_history_init(ecg_history *h, int16_t *data, uint32_t length)
{
    h->data = data;
    h->length = (uint16_t)length;
    ecg_history_reset(h);
}

static inline void ecg_history_put(ecg_history *h, int16_t x)
{
    h->newest = (uint16_t)(h->newest + 1u < h->length ? h->newest + 1u : 0u);
    h->data[h->newest] = x;
}

/* The sample `back` samples before the newest, 0 <= back < length. */
static inline int32_t ecg_history_at(const ecg_history *h, int32_t back)
{
    int32_t i = h->newest - back;
    return h->data[i < 0 ? i + h->length : i];
}

/* Whole samples in `ms` milliseconds, to the nearest. */
static inline int32_t ecg_samples(int32_t ms, int32_t fs)
{
    return (ms * fs + 500) / 1000;
}

/* The largest integer that is not above a / b; b > 0. */
static inline int32_t ecg_floor_div(int32_t a, int32_t b)
{
    return a / b - (a % b < 0);
}

static inline int64_t ecg_floor_div64(int64_t a, int64_t b)
{
    return a / b - (a % b < 0);
}

static inline int32_t ecg_abs(int32_t x)
{
    return x < 0 ? -x : x;
}

static inline int32_t ecg_min(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static inline int32_t ecg_max(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

/* Clamped to -128..127: how features become codes. */
static inline int8_t ecg_feature(int64_t x)
{
    return (int8_t)(x < -128 ? -128 : x > 127 ? 127 : x);
}

#endif
