/* SPDX-License-Identifier: Apache-2.0
 *
 * Features of a beat (input `rr` of a model): how its RR intervals compare with the last 16 and 64, and
 * its shape with the patient's running template. train/rpeak.py (rr_features) and train/template.py
 * define every bit.
 *
 * A row is complete when the interval to the next beat is known: when that beat is decided, or when 10 s
 * have passed, where intervals are clipped.
 *
 *     back = ecg_rpeak_push(&detector, &history);
 *     if (back >= 0 ? ecg_beats_push(&beats, &history, back, now - back, row)
 *                   : ecg_beats_overdue(&beats, now, row))
 *         the row of the beat before this one, or of the last beat, is complete
 *
 * Indices of samples are uint32_t and may wrap; only two beats 2^32 samples apart would be taken for
 * close ones. */
#ifndef ECG_BEATS_H
#define ECG_BEATS_H

#include "ecg_signal.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { ECG_BEATS_RR = 7, ECG_BEATS_FEATURES = 12 };

typedef struct {
    int32_t *mean;                      /* the template, times 16 */
    uint16_t *intervals;                /* ring: the last 64, newest at `newest` */
    uint32_t r;                         /* index of the last beat's R */
    uint16_t previous, usual, usual_long;       /* of the last beat: interval before it, and the medians */
    uint16_t fs, before, after, reach;          /* the template: samples before and after R, and shifts */
    uint16_t qrs;                       /* where its complex begins */
    uint8_t newest, unlike;
    uint8_t seen;                       /* beats so far: 0, 1, 2 or more */
    uint8_t told;                       /* the last beat's row has been given away */
    int8_t row[ECG_BEATS_FEATURES];     /* of the last beat, as if none followed */
} ecg_beats;

/* Bytes that ecg_beats_init wants, aligned to 4. */
uint32_t ecg_beats_memory(uint32_t fs);

/* Samples of history that are looked back on when a beat is decided. */
uint32_t ecg_beats_history(uint32_t fs);

/* memory must outlive the features. fs: 100 to 500 Hz. */
void ecg_beats_init(ecg_beats *b, uint32_t fs, void *memory);

/* As at a gap: interval, medians and template are learnt anew. */
void ecg_beats_reset(ecg_beats *b);

/* A beat has been decided: its R is sample number r, `back` samples before the newest of h. Returns 1 and
 * the row of the beat before, unless there is none or its row has been given by ecg_beats_overdue. */
int ecg_beats_push(ecg_beats *b, const ecg_history *h, int32_t back, uint32_t r, int8_t *row);

/* Returns 1, once, and the row of the last beat when no beat can follow it within 10 s any more. now:
 * index of the newest sample; all beats up to it have been pushed. */
int ecg_beats_overdue(ecg_beats *b, uint32_t now, int8_t *row);

/* The row of the last beat as if none followed: the next interval is taken to be the usual one. */
static inline void ecg_beats_last(const ecg_beats *b, int8_t *row)
{
    memcpy(row, b->row, sizeof b->row);
}

#ifdef __cplusplus
}
#endif

#endif
