/* SPDX-License-Identifier: Apache-2.0
 *
 * The R-peak detector: one lead of the front end's output, 100 to 500 Hz. train/rpeak.py says what it
 * looks for and defines every decision. A beat is decided within 300 ms of its R peak and never revised.
 *
 *     ecg_history_put(&history, x);
 *     back = ecg_rpeak_push(&detector, &history);
 *     if (back >= 0)
 *         a beat: its R lies `back` samples before x
 *
 * Nothing counts samples without end, so a stream may run for ever. */
#ifndef ECG_RPEAK_H
#define ECG_RPEAK_H

#include "ecg_signal.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where the sums over the last three boxes stand: a, b, d of train/rpeak.py. */
typedef struct {
    int32_t a, b, d;
} ecg_rpeak_sums;

typedef struct {
    int32_t *feature;                   /* ring: the feature at the last `before` + 1 samples */
    ecg_rpeak_sums entering, leaving;   /* at the newest sample, and where the 60 ms of the feature end */
    int32_t now;                        /* the feature at the newest sample */
    int32_t height[2];                  /* candidates that nothing has exceeded yet */
    int32_t level, noise, last_height, last_slope;
    int32_t heights[8];                 /* of the last beats, oldest first */
    uint32_t seen;                      /* samples since the start, as far as it matters */
    uint32_t gap;                       /* from the last beat's candidate to the one decided now, likewise */
    uint16_t intervals[8];              /* of the last beats, oldest first */
    uint16_t age[2];                    /* samples since the candidates of `height`; 0: none */
    uint16_t newest;                    /* place in the ring */
    uint16_t fs, box, sum, before, after, near, steep, delay;
    uint8_t had_beat;
} ecg_rpeak;

/* Bytes that ecg_rpeak_init wants, aligned to 4. */
uint32_t ecg_rpeak_memory(uint32_t fs);

/* Samples of history that the detector looks back on. */
uint32_t ecg_rpeak_history(uint32_t fs);

/* Samples from an R peak to its decision, at most. */
uint32_t ecg_rpeak_latency(uint32_t fs);

/* memory must outlive the detector. */
void ecg_rpeak_init(ecg_rpeak *d, uint32_t fs, void *memory);

/* As at a gap: the level is learnt anew. The history must be reset too. */
void ecg_rpeak_reset(ecg_rpeak *d);

/* The newest sample of h, once for every sample. Returns how many samples before it an R peak lies that
 * has just been decided, 0 .. latency, or -1. */
int32_t ecg_rpeak_push(ecg_rpeak *d, const ecg_history *h);

#ifdef __cplusplus
}
#endif

#endif
