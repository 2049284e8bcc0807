/* SPDX-License-Identifier: Apache-2.0
 *
 * The HAL of a board that exists in this computer's memory only, for tests of the whole application. Its clock moves when
 * the application sleeps and, by a chosen step, whenever it looks at the clock: that is how slow code is simulated.
 * Interrupts happen when the clock moves. A test calls the host_ functions. */
#include "app.h"
#include "hal_ring.h"
#include "image.h"

#include <string.h>

enum { HOST_BUFFER = 1 << 16, HOST_WAVE = 1 << 14, HOST_WATCHDOG_US = 8000000 };
enum { LINE_UP, LINE_CUT, LINE_STUCK };         /* cut: bytes go nowhere; stuck: nobody takes them */

static struct {
    app_t app;
    uint64_t clock, until, fed;
    uint32_t boots, step;
    uint8_t line;
    uint8_t in[HOST_BUFFER], out[HOST_BUFFER];
    uint32_t in_from, in_to, out_to;
    hal_frames frames;
    hal_frame waveform[HOST_WAVE];       /* what the sensor will see */
    uint32_t wave_at, wave_n;
    uint64_t wave_next, wave_period;            /* microseconds */
} host;

/* Time passes; the sensor's interrupts come in it. */
static void pass(uint64_t us)
{
    host.clock += us;
    while (host.wave_at < host.wave_n && host.wave_next <= host.clock) {
        hal_frames_put(&host.frames, &host.waveform[host.wave_at++], (uint32_t)host.wave_next);
        host.wave_next += host.wave_period;
    }
}

uint32_t hal_init(void)
{
    memset(&host.frames, 0, sizeof host.frames);
    host.fed = host.clock;
    return 0xb0070000u + ++host.boots;
}

uint32_t hal_time_us(void)
{
    pass(host.step);
    return (uint32_t)host.clock;
}

int32_t hal_samples(hal_frame *frames, int32_t room, uint32_t *lost, uint32_t *newest_us)
{
    return hal_frames_take(&host.frames, frames, room, lost, newest_us);
}

int32_t hal_link(const uint8_t *out, int32_t count, uint8_t *in, int32_t room, int32_t *got)
{
    uint32_t ready = host.in_to - host.in_from, free = HOST_BUFFER - host.out_to;
    *got = 0;
    if (host.line == LINE_UP) {
        *got = ready < (uint32_t)room ? (int32_t)ready : room;
        memcpy(in, host.in + host.in_from, (uint32_t)*got);
        host.in_from += (uint32_t)*got;
        count = (uint32_t)count < free ? count : (int32_t)free;
        memcpy(host.out + host.out_to, out, (uint32_t)count);
        host.out_to += (uint32_t)count;
    }
    return host.line == LINE_STUCK ? 0 : count;
}

void hal_sleep(uint32_t us)
{
    if (host.line == LINE_UP && host.in_from != host.in_to)
        return;
    for (uint32_t slept = 0; slept < us && host.frames.head == host.frames.tail; slept += 500u)
        pass(500u);
}

void hal_watchdog(void)
{
    host.fed = host.clock;
}

/* ---- for the test */

/* Power on, or reset: the host's time goes on. */
void host_boot(void)
{
    host.clock += 1000u;
    host.in_from = host.in_to = 0;
    app_init(&host.app, &app_this_image);
}

/* Run for so long; 1 when the watchdog reset the board meanwhile. */
int host_run(uint64_t us)
{
    int resets = 0;
    for (uint64_t until = host.clock + us; host.clock < until;) {
        app_step(&host.app);
        if (host.clock - host.fed > HOST_WATCHDOG_US) {
            host_boot();
            resets = 1;
        }
    }
    return resets;
}

/* Bytes to the board; those that arrive while the line is cut are gone. */
void host_feed(const uint8_t *bytes, uint32_t n)
{
    if (host.line != LINE_UP)
        return;
    memmove(host.in, host.in + host.in_from, host.in_to - host.in_from);
    host.in_to -= host.in_from;
    host.in_from = 0;
    n = n < HOST_BUFFER - host.in_to ? n : HOST_BUFFER - host.in_to;
    memcpy(host.in + host.in_to, bytes, n);
    host.in_to += n;
}

/* Bytes from the board; returns how many. */
uint32_t host_take(uint8_t *bytes)
{
    uint32_t n = host.out_to;
    memcpy(bytes, host.out, n);
    host.out_to = 0;
    return n;
}

void host_line(int line)
{
    host.line = (uint8_t)line;
}

/* Microseconds that pass at each look at the clock. */
void host_step(uint32_t us)
{
    host.step = us;
}

/* The sensor sees these frames from now on, one in `period` microseconds. */
void host_wave(const hal_frame *frames, uint32_t n, uint32_t period)
{
    host.wave_n = n < HOST_WAVE ? n : HOST_WAVE;
    if (host.wave_n)
        memcpy(host.waveform, frames, host.wave_n * sizeof *frames);
    host.wave_at = 0;
    host.wave_period = period;
    host.wave_next = host.clock + period;
}

uint64_t host_clock(void)
{
    return host.clock;
}
