/* SPDX-License-Identifier: Apache-2.0
 *
 * The MPS2 and MPS3 FPGA boards as QEMU emulates them, with the CMSDK UART and watchdog (ARM DDI 0479, sections 4.3 and
 * 4.5). HAL_MPS2: 385, 386, 500, 505 or 547, the number of the board's application note, whose memory map gives the
 * addresses; those of 505 and 547 are the aliases of the secure world, in which the core starts. */
#include "hal_core.h"

#if HAL_MPS2 == 505
#define HZ 20000000u
#define UART 0x50200000u
#define RECEIVED 32u            /* number of the interrupt; `sent` is the next one */
#define WATCHDOG 0x5002e000u    /* of 32.768 kHz */
#define WATCHDOG_HZ 32768u
#elif HAL_MPS2 == 547
#define HZ 32000000u
#define UART 0x59303000u
#define RECEIVED 33u
#define WATCHDOG 0x5802e000u
#define WATCHDOG_HZ 32768u
#elif HAL_MPS2 == 385 || HAL_MPS2 == 386 || HAL_MPS2 == 500
#define HZ 25000000u
#define UART 0x40004000u
#define RECEIVED 0u
#define WATCHDOG 0x40008000u
#define WATCHDOG_HZ HZ
#else
#error "HAL_MPS2 must be 385, 386, 500, 505 or 547"
#endif

#define UART_DATA REG(UART)
#define UART_STATE REG(UART + 0x4u)     /* bit 0: the send buffer is full; 1: a byte has come in */
#define UART_CTRL REG(UART + 0x8u)      /* bits 0 send, 1 receive, 2 and 3 their interrupts */
#define UART_INTCLEAR REG(UART + 0xcu)  /* bit 0 send, 1 receive */
#define UART_BAUDDIV REG(UART + 0x10u)

#define WDOG_LOAD REG(WATCHDOG)
#define WDOG_CONTROL REG(WATCHDOG + 0x8u)       /* bit 0: count, and interrupt at 0; 1: reset at the second 0 */
#define WDOG_INTCLR REG(WATCHDOG + 0xcu)
#define WDOG_LOCK REG(WATCHDOG + 0xc00u)
#define WDOG_KEY 0x1acce551u

uint32_t board_start(void)
{
    UART_BAUDDIV = HZ / HAL_BAUD;
    UART_CTRL = 3;
    hal_core_enable(RECEIVED);
    hal_core_enable(RECEIVED + 1u);
    /* at 0 it raises an NMI, which start-up takes for a fault and reboots; were that to fail, it resets at the next 0 */
    WDOG_LOCK = WDOG_KEY;
    WDOG_LOAD = WATCHDOG_HZ * HAL_WATCHDOG_S;
    WDOG_CONTROL = 3;
    return HZ;
}

uint32_t board_chance(void)
{
    return 0;
}

int board_send(uint8_t byte)
{
    if (UART_STATE & 1u)
        return 0;
    UART_DATA = byte;
    return 1;
}

static void interrupt(uint32_t bit, int on)
{
    if (on)
        UART_CTRL |= bit;
    else
        UART_CTRL &= ~bit;
}

void board_send_interrupt(int on)
{
    interrupt(4, on);
}

static void receive(void)
{
    while (UART_STATE & 2u) {
        if (!hal_core_room()) {
            interrupt(8, 0);
            break;
        }
        hal_core_received((uint8_t)UART_DATA);
    }
}

/* A byte that came while the interrupt was off never interrupts: it is fetched here. */
void board_receive_interrupt(int on)
{
    interrupt(8, on);
    if (on)
        receive();
}

void ecg_irq(int32_t number)
{
    (void)number;
    UART_INTCLEAR = 3;
    receive();
    hal_core_send();
}

void hal_watchdog(void)
{
    WDOG_INTCLR = 1;            /* counts from WDOG_LOAD again */
}
