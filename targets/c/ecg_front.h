/* SPDX-License-Identifier: Apache-2.0
 *
 * The front end: int32 microvolts at the input's rate -> int16 microvolts at the model's rate -> int8 codes.
 * train/frontend.py and train/resample.py define every bit:
 *
 *     clamp -> resample -> << 8 -> second-order sections -> round >> 8 -> clip -> ecg_front_code
 *
 * A frame is one sample of every lead. Put a frame, then get frames until there is none:
 *
 *     ecg_front_put(&front, uv);
 *     while (ecg_front_get(&front, x))
 *         ...
 *
 * Nothing counts samples without end, so a stream may run for ever. */
#ifndef ECG_FRONT_H
#define ECG_FRONT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ECG_FRONT_CLAMP_UV 1048576      /* of the input: 1 V, more than any electrode's offset */
#define ECG_FRONT_CLIP_UV 32767         /* of the output */
#define ECG_FRONT_GUARD 8               /* fractional bits of a microvolt between the sections */
#define ECG_FRONT_Q 28                  /* fractional bits of the sections' coefficients */
#define ECG_RATE_Q 15                   /* fractional bits of the resampler's taps */

/* A conversion of rates by up / down, a pure fraction. Output m is computed from the `taps` inputs up to
 * number m * down / up by the taps of phase m * down % up, the newest input first. up == down == 1: no
 * conversion. The magnitudes of a phase's taps sum to less than 2^19. */
typedef struct {
    const int16_t *table;               /* (up, taps) */
    uint32_t down;
    uint16_t up, taps;
} ecg_rate;

/* What the model's manifest says of the front end. No signal between the sections leaves int32 for inputs
 * within the clamp: targets/front_data.py has proven it. */
typedef struct {
    const int32_t *sections;            /* (count, 5): b0, b1, b2, -a1, -a2 of each second-order section */
    uint16_t fs;                        /* the model's rate in Hz */
    uint16_t settle;                    /* frames after a start or a gap that are not classified */
    uint16_t uv_per_lsb;                /* microvolts of a code */
    uint8_t count, leads;
} ecg_front_spec;

typedef struct {
    const ecg_front_spec *spec;
    const ecg_rate *rate;
    int32_t *filter;                    /* (lead, 3 * count + 2) */
    int32_t *input;                     /* (lead, taps): a ring */
    uint16_t newest;                    /* place of the newest input in the ring */
    uint16_t phase;                     /* of the next output */
    uint16_t missing;                   /* inputs that the next output waits for */
    uint16_t whole, part;               /* down / up and the rest */
    uint16_t settle;                    /* frames to come before the first that is classified */
    uint8_t input_seen, output_seen;
} ecg_front;

/* Bytes that ecg_front_init wants, aligned to 4. */
uint32_t ecg_front_memory(const ecg_front_spec *spec, const ecg_rate *rate);

/* spec, rate and memory must outlive the front end. */
void ecg_front_init(ecg_front *f, const ecg_front_spec *spec, const ecg_rate *rate, void *memory);

/* As at a gap: the next frame is the first of a new stream and sets the steady state. */
void ecg_front_reset(ecg_front *f);

/* One frame of microvolts in. ecg_front_get must have returned 0 since the last one. */
void ecg_front_put(ecg_front *f, const int32_t *uv);

/* 1 and the next frame of microvolts at the model's rate, when the inputs so far suffice for it; else 0. */
int ecg_front_get(ecg_front *f, int16_t *uv);

/* Many frames: reads at most n, writes at most `room`, both (frame, lead), and stops where one of them
 * ends. Returns the frames read; *made is the frames written. When *made == room there may be more to
 * come without another input. */
int32_t ecg_front_push(ecg_front *f, const int32_t *uv, int32_t n, int16_t *out, int32_t room, int32_t *made);

/* The nearest multiple of uv_per_lsb as a code, ties up. */
int8_t ecg_front_code(int32_t uv, int32_t uv_per_lsb);

#ifdef __cplusplus
}
#endif

#endif
