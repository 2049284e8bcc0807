/* SPDX-License-Identifier: Apache-2.0
 *
 * An ECG classifier on a microcontroller: samples in, decisions out.
 *
 *     static ecg_t e;
 *     static uint64_t memory[MODEL_RAM / 8];
 *     ecg_init(&e, &model, &model_rate, memory, sizeof memory);
 *     for (;;) {
 *         int32_t frames[8][MODEL_LEADS], n = read_frontend(frames), at = 0;      microvolts
 *         while (at < n) {
 *             ecg_result r;
 *             at += ecg_push(&e, frames[at], n - at, &r);
 *             if (r.ready)
 *                 show(&r);
 *         }
 *     }
 *
 * All state is in ecg_t and its memory; there are no globals, and a program may run several models. Nothing allocates,
 * nothing recurses. Not for two threads at once on one ecg_t.
 */
#ifndef ECG_H
#define ECG_H

#include "ecg_beats.h"
#include "ecg_front.h"
#include "ecg_net.h"
#include "ecg_rhythm.h"
#include "ecg_rpeak.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ECG_API_VERSION 1u
#define ECG_MAGIC 0x31474345u   /* "ECG1" */

/* Where the linker puts a model: its constant data together, the ecg_model in front, so that it can be sealed with a
 * CRC and replaced alone. Defined by the build of a firmware image. */
#ifdef ECG_MODEL_SECTION
#define ECG_DATA __attribute__((section(ECG_MODEL_SECTION)))
#define ECG_MODEL_HEAD __attribute__((section(ECG_MODEL_SECTION ".head"), used))
#else
#define ECG_DATA
#define ECG_MODEL_HEAD
#endif

enum { ECG_HOP, ECG_R_PEAK };                       /* trigger */
enum { ECG_ARGMAX, ECG_THRESHOLD };                 /* rule */
enum { ECG_RR, ECG_BEATS, ECG_AGE, ECG_SEX };       /* side inputs */
enum { ECG_SIDES = 4, ECG_LEADS_MAX = 12 };

/* A model's constant data. Generated; nobody else fills it in. */
typedef struct {
    uint32_t magic, version;
    uint32_t length, crc;           /* of the section, CRC-32 with this field 0; length 0: not sealed */
    uint32_t mirror;                /* ~length: a wrong length is known before anything is read by it */
    uint8_t identity[32];           /* SHA-256 of what the manifest promises */
    const char *name;
    const ecg_program *window;      /* NULL: this build does not evaluate single windows */
    const ecg_stream *stream;       /* NULL: this build or model does not stream */
    const ecg_front_spec *front;    /* NULL: a graph without a manifest */
    const int32_t *offsets;         /* one per class, 1/256 of a logit step */
    uint32_t arena, scratch, state; /* bytes */
    uint16_t counters;
    uint16_t fs, leads, samples, hop, classes;      /* Hz; samples of a window and a hop */
    uint16_t r_offset, vote;        /* R in the window; windows averaged, 0: all since the start */
    uint8_t beats_after, trigger, rule, side_count, sides[ECG_SIDES];
} ecg_model;

typedef struct {
    uint32_t sample;                /* at the model's rate, from the start or the last reset: the last of the window, or R */
    uint32_t present;               /* bit k: class k is there */
    int16_t top;                    /* the class of an argmax rule, else -1 */
    uint8_t ready;                  /* 1: this is a decision */
    uint8_t unreliable;             /* 1: the signal was settling or marked bad; do not show a class */
    const int8_t *logits;           /* of this window; valid until the next call */
} ecg_result;

enum { ECG_OK = 0, ECG_E_VERSION = -1, ECG_E_MEMORY = -2, ECG_E_KERNEL = -3, ECG_E_FORM = -4, ECG_E_DAMAGED = -5 };


/* A beat that waits until its window is whole. */
typedef struct {
    uint32_t r;
    int8_t rr[ECG_BEATS_FEATURES];
    int8_t beats[ECG_RHYTHM_STEPS][ECG_RHYTHM_FEATURES];
} ecg_waiting;

enum { ECG_QUEUE = 4 };     /* beats that can wait; targets/c_model.py refuses windows for which more would */

/* The state of one classifier. */
typedef struct {
    const ecg_model *model;
    ecg_net net;
    ecg_front front;
    int8_t *logits;                 /* of the newest window */
    int8_t *votes;                  /* the last `vote` windows' logits */
    int32_t *sums;
    uint32_t windows;               /* that count, since the start or the last reset */
    uint32_t now;                   /* samples at the model's rate since then */
    uint32_t good;                  /* samples from this one on are not marked bad */
    int8_t age, sex;                /* years or -1, 1 male 2 female 0 unknown */

    /* models that look at beats */
    ecg_history history;
    ecg_rpeak rpeak;
    ecg_beats beats;
    ecg_rhythm rhythm;
    int8_t *codes;                  /* a ring of codes, (lead, room), for windows around beats; the next goes to `at` */
    uint32_t room, at, held;
    ecg_waiting *queue;
    uint8_t waiting;
} ecg_t;

/* Bytes of memory that ecg_init wants. rate: from the input's rate to the model's, NULL: they are equal. */
uint32_t ecg_memory(const ecg_model *model, const ecg_rate *rate);

/* Takes `memory` (aligned to 8 bytes) and starts. ECG_OK, or what is wrong. */
int ecg_init(ecg_t *e, const ecg_model *model, const ecg_rate *rate, void *memory, uint32_t bytes);

/* ECG_OK when the model's section is as the build sealed it, ECG_E_DAMAGED when not, also when it never was sealed. */
int ecg_check(const ecg_model *model);

/* Forgets the signal, as after a gap; the patient and the model stay. */
void ecg_reset(ecg_t *e);

/* Years, -1 unknown; 1 male, 2 female, 0 unknown. For models that ask. */
void ecg_patient(ecg_t *e, int age, int sex);

/* The samples pushed so far are bad (an electrode is off, the amplifier is at its rail): a window that holds one of them,
 * or one of the two seconds behind them in which the filters settle, is unreliable and has no say. */
void ecg_bad(ecg_t *e);

/* n frames of microvolts at the input's rate, uv[frame * leads + lead]. Returns the frames taken: all n, or fewer when a
 * decision was made, r->ready; then push the rest. */
int32_t ecg_push(ecg_t *e, const int32_t *uv, int32_t n, ecg_result *r);

/* The same with codes at the model's rate, behind the front end. Not for models that look at beats: takes nothing. */
int32_t ecg_push_codes(ecg_t *e, const int8_t *codes, int32_t n, ecg_result *r);

/* One window by itself: inputs in the manifest's order, each without gaps; logits: model->classes codes. */
int ecg_window(ecg_t *e, const int8_t *const *inputs, int8_t *logits);

#ifdef __cplusplus
}
#endif
#endif
