/* SPDX-License-Identifier: Apache-2.0 */
#include "hal_core.h"

/* ARMv6-M and ARMv7-M architecture manuals, B3.3 and B3.2 */
#define SYST_CSR REG(0xe000e010u)
#define SYST_RVR REG(0xe000e014u)
#define SYST_CVR REG(0xe000e018u)
#define ICSR REG(0xe000ed04u)
#define PENDSTSET (1u << 26)

enum { TICK_US = 10000 };

/* Buffers of this HAL, and what keeps the clock */
static uint8_t rx_data[HAL_RX], tx_data[HAL_TX];
static hal_bytes rx = { .mask = HAL_RX - 1u, .data = rx_data }, tx = { .mask = HAL_TX - 1u, .data = tx_data };
#ifdef HAL_SENSOR
hal_frames hal_core_frames;
#endif
static volatile uint32_t ticks;
static uint32_t per_tick, per_us;

/* Not cleared at reset: what is left in it differs, and each boot changes it. */
static uint32_t boots __attribute__((section(".noinit")));

static inline void interrupts_off(void)
{
    __asm__ volatile("cpsid i" ::: "memory");
}

static inline void interrupts_on(void)
{
    __asm__ volatile("cpsie i" ::: "memory");
}

__attribute__((weak)) void hal_core_clock(uint32_t hz)
{
    per_us = hz / 1000000u;
    per_tick = hz / (1000000u / TICK_US);
    SYST_RVR = per_tick - 1u;
    SYST_CVR = 0;
    SYST_CSR = 7;               /* the core's clock, interrupt, on */
}

/* The next tick is 10 ms away at most. */
__attribute__((weak)) void hal_core_alarm(uint32_t us)
{
    (void)us;
}

uint32_t hal_init(void)
{
    interrupts_off();
    hal_core_clock(board_start());
    board_receive_interrupt(1);
    interrupts_on();
#ifdef HAL_SENSOR
    hal_sensor_start();         /* without its samples the watchdog will starve, and the next boot tries again */
#endif
    boots = (boots ^ board_chance()) * 1664525u + 1013904223u;
    return boots;
}

void ecg_tick(void)
{
    ticks++;
}

/* The tick comes when the counter reaches 0; it goes on with its highest number. Also right inside of an interrupt, where
 * a tick that is due has not been counted yet. It never goes back: QEMU starts the counter again a moment before it says
 * that the tick is due. */
__attribute__((weak)) uint32_t hal_time_us(void)
{
    static uint32_t latest;
    uint32_t before, left, due;
    do {
        before = ticks;
        due = ICSR & PENDSTSET;
        left = SYST_CVR;
    } while (before != ticks || due != (ICSR & PENDSTSET));
    const uint32_t now = (before + (due != 0)) * TICK_US + (left ? (per_tick - left) / per_us : 0);
    if ((int32_t)(now - latest) > 0)
        latest = now;
    return latest;
}

int32_t hal_samples(hal_frame *frames, int32_t room, uint32_t *lost, uint32_t *newest_us)
{
#ifdef HAL_SENSOR
    interrupts_off();
    int32_t n = hal_frames_take(&hal_core_frames, frames, room, lost, newest_us);
    interrupts_on();
    return n;
#else
    (void)frames, (void)room, (void)newest_us;
    *lost = 0;
    return 0;
#endif
}

void hal_core_send(void)
{
    uint32_t tail = tx.tail;
    while (tail != tx.head && board_send(tx.data[tail & tx.mask]))
        tail++;
    tx.tail = tail;
    board_send_interrupt(tail != tx.head);
}

int hal_core_room(void)
{
    return rx.head - rx.tail <= rx.mask;
}

void hal_core_received(uint8_t byte)
{
    hal_bytes_put(&rx, byte);
}

int32_t hal_link(const uint8_t *out, int32_t count, uint8_t *in, int32_t room, int32_t *got)
{
    int32_t taken = 0, n = 0;
    while (taken < count && hal_bytes_put(&tx, out[taken]))
        taken++;
    while (n < room && hal_bytes_get(&rx, &in[n]))
        n++;
    *got = n;
    interrupts_off();
    hal_core_send();
    if (n)
        board_receive_interrupt(1);
    interrupts_on();
    return taken;
}

/* An interrupt that comes between the question and WFI is pending then, and WFI returns at once. */
void hal_sleep(uint32_t us)
{
    hal_core_alarm(us);
    interrupts_off();
    int waiting = rx.head != rx.tail;
#ifdef HAL_SENSOR
    waiting |= hal_core_frames.head != hal_core_frames.tail;
#endif
    if (!waiting)
        __asm__ volatile("dsb\n\twfi" ::: "memory");
    interrupts_on();
}
