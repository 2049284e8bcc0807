/* SPDX-License-Identifier: Apache-2.0
 *
 * What the application asks of a board. Five functions, and one to begin. None of them waits but hal_sleep. */
#ifndef HAL_H
#define HAL_H

#include <stdint.h>

/* Channels of a front-end chip and most frames that the ring between interrupt and main loop holds. */
#ifndef HAL_CHANNELS
#define HAL_CHANNELS 8
#endif

/* One moment of all channels. */
typedef struct {
    int32_t uv[HAL_CHANNELS];
    uint8_t lead_off;           /* bit k: the electrode of channel k is off */
} hal_frame;

/* Clocks, link, sensor, watchdog. Returns a number for this boot, another one than last time as far as the part can. */
uint32_t hal_init(void);

/* Microseconds of a clock that never stops; wraps after 71 minutes. */
uint32_t hal_time_us(void);

/* Take up to `room` frames that the sensor has delivered, oldest first; returns how many. *lost: frames that the ring
 * had no room for, all of them in front of the first frame returned. *newest_us: when the last frame returned came.
 * A board without a sensor returns 0. */
int32_t hal_samples(hal_frame *frames, int32_t room, uint32_t *lost, uint32_t *newest_us);

/* Move bytes over the link, in both directions. Returns how many of the `count` bytes at `out` were taken; up to `room`
 * bytes that came in lie at `in` then, *got of them. */
int32_t hal_link(const uint8_t *out, int32_t count, uint8_t *in, int32_t room, int32_t *got);

/* Stop the core until something comes in, or about `us` microseconds have passed. Returns at once where something is
 * waiting. */
void hal_sleep(uint32_t us);

/* Feed the watchdog. It resets the board when it is not fed for 8 seconds. */
void hal_watchdog(void);

#endif
