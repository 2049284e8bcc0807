/* SPDX-License-Identifier: Apache-2.0
 *
 * The last 16 beats as a sequence (input `beats` of a model): intervals, sizes and P waves.
 * train/pwave.py and train/rhythm.py define every bit.
 *
 *     back = ecg_rpeak_push(&detector, &history);
 *     if (back >= 0)
 *         ecg_rhythm_push(&rhythm, &history, back, now - back);
 *     ...
 *     ecg_rhythm_sequence(&rhythm, ecg_rhythm_unknown(&rhythm, now), codes);     a window that ends at `now`
 *     ecg_rhythm_sequence(&rhythm, 1, codes);      the beat before the one just decided
 *
 * Indices of samples are uint32_t and may wrap; only 2^32 samples without a beat would be taken for a
 * short time. */
#ifndef ECG_RHYTHM_H
#define ECG_RHYTHM_H

#include "ecg_signal.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { ECG_RHYTHM_STEPS = 16, ECG_RHYTHM_FEATURES = 9 };

typedef struct {
    int32_t *mean;                      /* of the summed signal, times 16, at each place up to R */
    uint32_t r;                         /* index of the last beat's R */
    int32_t usual_rr, usual_size;       /* running means times 16; 0: none yet */
    uint16_t fs, latency, sum, back;    /* sum: samples of the sum; back: places before R */
    uint8_t seen;                       /* beats so far, up to 4 */
    uint8_t newest;                     /* place in `rows` */
    int8_t rows[ECG_RHYTHM_STEPS + 1][ECG_RHYTHM_FEATURES];     /* ring; zeros before the first beat */
} ecg_rhythm;

/* Bytes that ecg_rhythm_init wants, aligned to 4. */
uint32_t ecg_rhythm_memory(uint32_t fs);

/* Samples of history that are looked back on when a beat is decided. */
uint32_t ecg_rhythm_history(uint32_t fs);

/* memory must outlive the features. fs: 100 to 500 Hz. */
void ecg_rhythm_init(ecg_rhythm *s, uint32_t fs, void *memory);

/* As at a gap: there is no beat, and usual interval, size and P wave are learnt anew. */
void ecg_rhythm_reset(ecg_rhythm *s);

/* A beat has been decided: its R is sample number r, `back` samples before the newest of h. */
void ecg_rhythm_push(ecg_rhythm *s, const ecg_history *h, int32_t back, uint32_t r);

/* How many of the last rows (0 or 1) do not belong in a window whose last sample has the index now: beats
 * count from the detector's latency behind their R on, however early they were decided. */
uint32_t ecg_rhythm_unknown(const ecg_rhythm *s, uint32_t now);

/* The rows of the last 16 beats, oldest first, without the last `skip` of them (0 or 1). */
void ecg_rhythm_sequence(const ecg_rhythm *s, uint32_t skip, int8_t *rows);

#ifdef __cplusplus
}
#endif

#endif
