/* SPDX-License-Identifier: Apache-2.0
 *
 * The two loops of ecg_attention_dsp() in which the time goes. */
#ifndef ECG_ATTENTION_DSP_H
#define ECG_ATTENTION_DSP_H

#include "ecg_attention.h"
#include "ecg_dsp.h"

enum { FOUR = 4 };      /* keys that meet at once */

/* Scores of two queries, pairs of rows from q to end, at `fours` times four keys: the first query's from
 * `to` on, the second one's `apart` bytes behind them. */
void ecg_attention_score(const uint32_t *k, const uint32_t *q, const uint32_t *end, int32_t *to,
                         int32_t apart, int32_t fours);

/* Outputs of two rows of weights, two channels at a time until v is `end`, which moves v and out. An odd
 * channel at the end is a call of its own, with pitches 0. */
typedef struct {
    const uint32_t *e;
    const int8_t *v;
    int32_t v_pitch;
    int32_t rest;               /* keys in front of the last four */
    int8_t *out;
    int32_t out_pitch;
    int32_t apart;              /* columns between the two queries; 0: they are one; < 0: one in two maps */
    int32_t factor[2];
    int32_t v_step;             /* 2 * v_pitch */
    const int8_t *end;
    int32_t twice;              /* keys of the last four that had their turn */
} ecg_weighted;
void ecg_attention_values(ecg_weighted *x);

#endif
