/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs the C front end and the detector with its features on what tests/cfront.py writes to stdin;
 * answers on stdout. Every block of memory has exactly the size that was asked for, so that a sanitizer
 * sees a step beyond it. */
#include <stdio.h>
#include <stdlib.h>

#include "ecg_beats.h"
#include "ecg_front.h"
#include "ecg_rhythm.h"
#include "ecg_rpeak.h"

static void *block(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    if (!p)
        exit(3);
    memset(p, 0xa5, bytes);
    return p;
}

static void *wanted(size_t bytes)
{
    void *p = block(bytes);
    if (fread(p, 1, bytes, stdin) != bytes)
        exit(4);
    return p;
}

static void answer(const void *data, size_t bytes)
{
    fwrite(data, 1, bytes, stdout);
}

/* fs, settle, uv_per_lsb, sections, leads, up, down, taps, frames, chunks, room, 0; sections; taps;
 * chunks (frames, and 1 for a reset before them); frames -> for each chunk the frames made, settle left
 * behind it; all frames; codes */
static void front(void)
{
    int32_t *head = wanted(12 * 4), n = head[8], chunks = head[9], room = head[10], leads = head[4];
    int32_t *sections = wanted((size_t)head[3] * 5 * 4);
    int16_t *table = wanted((size_t)head[5] * (size_t)head[7] * 2);
    int32_t *chunk = wanted((size_t)chunks * 8), *uv = wanted((size_t)n * (size_t)leads * 4);
    ecg_front_spec spec = {sections, (uint16_t)head[0], (uint16_t)head[1], (uint16_t)head[2],
                           (uint8_t)head[3], (uint8_t)leads};
    ecg_rate rate = {table, (uint32_t)head[6], (uint16_t)head[5], (uint16_t)head[7]};
    uint32_t bytes = ecg_front_memory(&spec, &rate), used = 0, size = 1 << 12;
    int16_t *all = block(size * 2), *out = block((size_t)room * (size_t)leads * 2);
    void *memory = block(bytes);
    ecg_front f;

    ecg_front_init(&f, &spec, &rate, memory);
    answer(&bytes, 4);
    for (int32_t c = 0; c < chunks; c++) {
        int32_t made, total = 0, left = chunk[2 * c];
        if (chunk[2 * c + 1])
            ecg_front_reset(&f);
        do {
            int32_t read = ecg_front_push(&f, uv, left, out, room, &made);
            uint32_t values = (uint32_t)(made * leads);
            while (used + values > size)
                all = realloc(all, (size *= 2) * 2);
            memcpy(all + used, out, values * 2);
            used += values;
            uv += read * leads;
            left -= read;
            total += made;
        } while (left || made == room);
        answer(&total, 4);
        answer(&(int32_t){f.settle}, 4);
    }
    answer(all, used * 2);
    for (uint32_t i = 0; i < used; i++)
        answer(&(int8_t){ecg_front_code(all[i], spec.uv_per_lsb)}, 1);
}

/* values, uv_per_lsb; int32 microvolts -> codes */
static void codes(void)
{
    int32_t *head = wanted(2 * 4), *uv = wanted((size_t)head[0] * 4);

    for (int32_t i = 0; i < head[0]; i++)
        answer(&(int8_t){ecg_front_code(uv[i], head[1])}, 1);
}

typedef struct {
    uint32_t kind, now, r;
    int8_t row[ECG_RHYTHM_STEPS * ECG_RHYTHM_FEATURES];
} event;

enum { BEAT, ROW, LAST_ROW, SEQUENCE, SEQUENCE_BEFORE, WINDOW, BYTES };

static void tell(uint32_t kind, uint32_t now, uint32_t r, const int8_t *row, size_t bytes)
{
    event e = {kind, now, r, {0}};
    memcpy(e.row, row, bytes);
    answer(&e, sizeof e);
}

/* fs, samples, resets, hop, index of the first sample; resets (sample numbers); samples -> events */
static void beats(void)
{
    uint32_t *head = wanted(5 * 4), fs = head[0], next = 0;
    uint32_t *resets = wanted(head[2] * 4);
    int16_t *x = wanted(head[1] * 2);
    uint32_t longest = ecg_rpeak_history(fs), a = ecg_beats_history(fs), b = ecg_rhythm_history(fs);
    uint32_t bytes[6] = {longest, a, b, ecg_rpeak_memory(fs), ecg_beats_memory(fs), ecg_rhythm_memory(fs)};
    int8_t row[144];
    ecg_history h;
    ecg_rpeak d;
    ecg_beats f;
    ecg_rhythm s;

    longest = longest > a ? longest : a;
    longest = longest > b ? longest : b;
    ecg_history_init(&h, block(longest * 2), longest);
    ecg_rpeak_init(&d, fs, block(bytes[3]));
    ecg_beats_init(&f, fs, block(bytes[4]));
    ecg_rhythm_init(&s, fs, block(bytes[5]));
    tell(BYTES, longest, ecg_rpeak_latency(fs), (int8_t *)bytes, sizeof bytes);
    for (uint32_t i = 0; i < head[1]; i++) {
        uint32_t now = head[4] + i;
        int32_t back;
        if (next < head[2] && resets[next] == i) {
            next++;
            ecg_beats_last(&f, row);
            tell(LAST_ROW, now - 1, f.r, row, ECG_BEATS_FEATURES);
            ecg_history_reset(&h);
            ecg_rpeak_reset(&d);
            ecg_beats_reset(&f);
            ecg_rhythm_reset(&s);
        }
        ecg_history_put(&h, x[i]);
        back = ecg_rpeak_push(&d, &h);
        if (back >= 0) {
            uint32_t r = now - (uint32_t)back, before = f.r;
            tell(BEAT, now, r, row, 0);
            if (ecg_beats_push(&f, &h, back, r, row))
                tell(ROW, now, before, row, ECG_BEATS_FEATURES);
            ecg_rhythm_push(&s, &h, back, r);
            ecg_rhythm_sequence(&s, 0, row);
            tell(SEQUENCE, now, r, row, sizeof row);
            ecg_rhythm_sequence(&s, 1, row);
            tell(SEQUENCE_BEFORE, now, r, row, sizeof row);
        } else if (ecg_beats_overdue(&f, now, row)) {
            tell(ROW, now, f.r, row, ECG_BEATS_FEATURES);
        }
        if ((i + 1) % head[3] == 0) {
            ecg_rhythm_sequence(&s, ecg_rhythm_unknown(&s, now), row);
            tell(WINDOW, now, 0, row, sizeof row);
        }
    }
    ecg_beats_last(&f, row);
    tell(LAST_ROW, head[4] + head[1] - 1, f.r, row, ECG_BEATS_FEATURES);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    if (argv[1][0] == 'f')
        front();
    else if (argv[1][0] == 'c')
        codes();
    else
        beats();
    return 0;
}
