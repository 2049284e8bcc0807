/* SPDX-License-Identifier: Apache-2.0
 *
 * Rings between an interrupt and the main loop, of one writer and one reader each. No lock is needed: an index is
 * written by one side only. */
#ifndef HAL_RING_H
#define HAL_RING_H

#include "hal.h"

#ifndef HAL_RX
#define HAL_RX 1024u            /* bytes from the host while the main loop computes: 89 ms at 115200 baud */
#endif
#ifndef HAL_TX
#define HAL_TX 256u
#endif
#ifndef HAL_FRAMES
#define HAL_FRAMES 64u          /* frames of the sensor meanwhile: 256 ms at 250 Hz */
#endif

/* Keeps the compiler, and a second bus master, from moving the data behind the index. */
static inline void hal_barrier(void)
{
    __sync_synchronize();
}

typedef struct {
    volatile uint32_t head, tail;       /* written so far, read so far */
    uint32_t mask;                      /* bytes - 1, a power of two less one */
    uint8_t *data;
} hal_bytes;

static inline int hal_bytes_put(hal_bytes *ring, uint8_t byte)
{
    uint32_t head = ring->head;
    if (head - ring->tail > ring->mask)
        return 0;
    ring->data[head & ring->mask] = byte;
    hal_barrier();
    ring->head = head + 1u;
    return 1;
}

static inline int hal_bytes_get(hal_bytes *ring, uint8_t *byte)
{
    uint32_t tail = ring->tail;
    if (tail == ring->head)
        return 0;
    *byte = ring->data[tail & ring->mask];
    hal_barrier();
    ring->tail = tail + 1u;
    return 1;
}

/* The sensor's frames. Once one did not fit, all are let go until the reader has emptied the ring and has been told: so
 * there is one gap, and its place is known. */
typedef struct {
    volatile uint32_t head, tail;
    volatile uint32_t lost;             /* written by the writer, set to 0 by the reader while the writer waits for it */
    uint32_t stamp[HAL_FRAMES];
    hal_frame frame[HAL_FRAMES];
} hal_frames;

static inline void hal_frames_put(hal_frames *ring, const hal_frame *frame, uint32_t now_us)
{
    uint32_t head = ring->head;
    if (ring->lost || head - ring->tail == HAL_FRAMES) {
        ring->lost++;
        return;
    }
    ring->frame[head % HAL_FRAMES] = *frame;
    ring->stamp[head % HAL_FRAMES] = now_us;
    hal_barrier();
    ring->head = head + 1u;
}

/* A frame is missing, at least one: the sensor says so. */
static inline void hal_frames_lose(hal_frames *ring)
{
    ring->lost++;
}

/* hal_samples() over a ring; the writer's interrupt must be off */
static inline int32_t hal_frames_take(hal_frames *ring, hal_frame *to, int32_t room, uint32_t *lost, uint32_t *newest_us)
{
    int32_t n = 0;
    *lost = 0;
    if (ring->head == ring->tail) {
        *lost = ring->lost;
        ring->lost = 0;
        return 0;
    }
    for (; n < room && ring->tail != ring->head; n++, ring->tail++) {
        to[n] = ring->frame[ring->tail % HAL_FRAMES];
        *newest_us = ring->stamp[ring->tail % HAL_FRAMES];
    }
    return n;
}

#endif
