/* SPDX-License-Identifier: Apache-2.0 */
#include "ecg_front.h"

#include "ecg_signal.h"

static uint32_t filter_words(const ecg_front_spec *spec)
{
    return 3u * spec->count + 2u;
}

uint32_t ecg_front_memory(const ecg_front_spec *spec, const ecg_rate *rate)
{
    return spec->leads * (filter_words(spec) + rate->taps) * (uint32_t)sizeof(int32_t);
}

void ecg_front_init(ecg_front *f, const ecg_front_spec *spec, const ecg_rate *rate, void *memory)
{
    f->spec = spec;
    f->rate = rate;
    f->filter = (int32_t *)memory;
    f->input = f->filter + spec->leads * filter_words(spec);
    f->whole = (uint16_t)(rate->down / rate->up);
    f->part = (uint16_t)(rate->down % rate->up);
    ecg_front_reset(f);
}

void ecg_front_reset(ecg_front *f)
{
    f->newest = f->phase = 0;
    f->missing = 1;
    f->settle = f->spec->settle;
    f->input_seen = f->output_seen = 0;
}

void ecg_front_put(ecg_front *f, const int32_t *uv)
{
    const uint32_t taps = f->rate->taps;
    int32_t *ring = f->input;

    f->newest = (uint16_t)(f->newest + 1u < taps ? f->newest + 1u : 0u);
    for (uint32_t lead = 0; lead < f->spec->leads; lead++, ring += taps) {
        int32_t x = ecg_max(ecg_min(uv[lead], ECG_FRONT_CLAMP_UV), -ECG_FRONT_CLAMP_UV);
        ring[f->newest] = x;
        if (!f->input_seen)             /* before the first input there was nothing but it */
            for (uint32_t i = 0; i < taps; i++)
                ring[i] = x;
    }
    f->input_seen = 1;
    f->missing--;
}

/* One output of the resampler, from the ring of one lead. Inputs of 21 bits in two parts keep the sums
 * within 32 bits, since the magnitudes of the taps sum to less than 2^19. */
static int32_t resampled(const ecg_front *f, const int32_t *ring)
{
    enum { LOW = 11 };
    const int32_t newest = f->newest;
    const int16_t *tap = f->rate->table + (uint32_t)f->phase * f->rate->taps;
    int32_t high = 0, low = 1 << (ECG_RATE_Q - 1), i;

    if (f->rate->up == f->rate->down)
        return ring[newest];
    for (i = newest; i >= 0; i--, tap++) {
        high += *tap * (ring[i] >> LOW);
        low += *tap * (ring[i] & ((1 << LOW) - 1));
    }
    for (i = f->rate->taps - 1; i > newest; i--, tap++) {
        high += *tap * (ring[i] >> LOW);
        low += *tap * (ring[i] & ((1 << LOW) - 1));
    }
    i = (high + (low >> LOW)) >> (ECG_RATE_Q - LOW);
    return ecg_max(ecg_min(i, ECG_FRONT_CLAMP_UV), -ECG_FRONT_CLAMP_UV);        /* a full step overshoots */
}

/* One sample through all sections. A section keeps x[n-1], x[n-2] and what the last shift cut off; its
 * y[n-1] and y[n-2] are the x of the next one, or the last two words. */
static int32_t filtered(const ecg_front_spec *spec, int32_t *past, int32_t x)
{
    const int32_t *c = spec->sections;
    int32_t x1 = past[0], x2 = past[1];

    for (uint32_t k = spec->count; k > 0; k--, c += 5, past += 3) {
        int32_t y1 = past[3], y2 = past[4];
        int64_t sum = (int64_t)c[0] * x + past[2];
        sum += (int64_t)c[1] * x1;
        sum += (int64_t)c[2] * x2;
        sum += (int64_t)c[3] * y1;
        sum += (int64_t)c[4] * y2;
        past[0] = x;
        past[1] = x1;
        past[2] = (int32_t)(sum & ((1 << ECG_FRONT_Q) - 1));
        x = (int32_t)(sum >> ECG_FRONT_Q);
        x1 = y1;
        x2 = y2;
    }
    past[0] = x;
    past[1] = x1;
    return x;
}

/* The steady state of a signal that has always been `x`: the first section's input; behind it all is at
 * rest, since a high-pass comes first. */
static void rest(const ecg_front_spec *spec, int32_t *past, int32_t x)
{
    memset(past, 0, filter_words(spec) * sizeof *past);
    past[0] = past[1] = x;
}

int ecg_front_get(ecg_front *f, int16_t *uv)
{
    const ecg_front_spec *spec = f->spec;
    int32_t *past = f->filter;
    const int32_t *ring = f->input;

    if (f->missing)
        return 0;
    for (uint32_t lead = 0; lead < spec->leads; lead++, past += filter_words(spec), ring += f->rate->taps) {
        int32_t x = resampled(f, ring) * (1 << ECG_FRONT_GUARD);
        if (!f->output_seen)
            rest(spec, past, x);
        x = (filtered(spec, past, x) + (1 << (ECG_FRONT_GUARD - 1))) >> ECG_FRONT_GUARD;
        uv[lead] = (int16_t)ecg_max(ecg_min(x, ECG_FRONT_CLIP_UV), -ECG_FRONT_CLIP_UV);
    }
    f->output_seen = 1;
    f->missing = f->whole;
    f->phase = (uint16_t)(f->phase + f->part);
    if (f->phase >= f->rate->up) {
        f->phase = (uint16_t)(f->phase - f->rate->up);
        f->missing++;
    }
    if (f->settle)
        f->settle--;
    return 1;
}

int32_t ecg_front_push(ecg_front *f, const int32_t *uv, int32_t n, int16_t *out, int32_t room, int32_t *made)
{
    const int32_t leads = f->spec->leads;
    int32_t read = 0, written = 0;

    for (;;) {
        while (written < room && ecg_front_get(f, out + written * leads))
            written++;
        if (written == room || read == n)
            break;
        ecg_front_put(f, uv + read * leads);
        read++;
    }
    *made = written;
    return read;
}

int8_t ecg_front_code(int32_t uv, int32_t uv_per_lsb)
{
    return ecg_feature(ecg_floor_div(2 * uv + uv_per_lsb, 2 * uv_per_lsb));
}
