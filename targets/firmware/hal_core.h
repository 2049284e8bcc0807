/* SPDX-License-Identifier: Apache-2.0
 *
 * What all boards with a Cortex-M share: time from SysTick, sleep, the rings of link and sensor. hal_core.c makes the HAL
 * of hal.h out of these functions of a board's file, and calls them as stated. */
#ifndef HAL_CORE_H
#define HAL_CORE_H

#include <stdint.h>

#include "ecg_boot.h"
#include "hal.h"
#include "hal_ring.h"

#define HAL_BAUD 115200u
#define HAL_WATCHDOG_S 8u

#define REG(address) (*(volatile uint32_t *)(uintptr_t)(address))

/* Clocks, link, watchdog; returns Hz of the core. Runs before interrupts are on. The clock setting is left as it is where
 * an oscillator does not start. */
uint32_t board_start(void);

/* Give a byte to the link; 0 where it cannot take one now. Interrupts are off. */
int board_send(uint8_t byte);

/* The interrupt that says that the link can take a byte, or that one came in. */
void board_send_interrupt(int on);
void board_receive_interrupt(int on);

/* Something that differs from boot to boot, if the part has it, else 0. */
uint32_t board_chance(void);

/* A board whose SysTick is not its clock replaces these and hal_time_us(): start the clock; wake up in `us` microseconds. */
void hal_core_clock(uint32_t hz);
void hal_core_alarm(uint32_t us);

/* For a board's interrupt handler ecg_irq(): take a byte that came in, 0 where there is no room: leave it where it is and
 * turn its interrupt off, the main loop will turn it on again; and: give bytes to the link. */
int hal_core_room(void);
void hal_core_received(uint8_t byte);
void hal_core_send(void);

/* The sensor's ring, for its interrupt. */
extern hal_frames hal_core_frames;

/* A board with a front-end chip, HAL_SENSOR 1292 or 30003, has these too; hal_sensor.c drives the chip over them. SPI of
 * `mode` 0 or 1 at `hz` at most; bytes out and in, the chip selected meanwhile; the interrupt of its ready line, at whose
 * falling edge the board calls hal_sensor_ready. */
#ifdef HAL_SENSOR
void board_spi_start(uint32_t hz, int mode);
void board_spi(uint8_t *bytes, uint32_t n);
void board_ready_interrupt(void);
int hal_sensor_start(void);
void hal_sensor_ready(void);
#endif

/* NVIC: turn an interrupt on. */
static inline void hal_core_enable(unsigned irq)
{
    REG(0xe000e100u + irq / 32u * 4u) = 1u << irq % 32u;
}

/* Wait for a bit, but not for ever: an oscillator may be missing, and emulators have none. 1 when it came. */
static inline int hal_core_await(uint32_t address, uint32_t mask, uint32_t value)
{
    for (uint32_t tries = 0; tries < 200000u; tries++)
        if ((REG(address) & mask) == value)
            return 1;
    return 0;
}

#endif
