/* SPDX-License-Identifier: Apache-2.0
 *
 * RP2040 (to be checked against data sheet sections 2.14 RESETS, 2.15 CLOCKS, 2.16 XOSC, 2.18 PLL, 2.19 GPIO,
 * 4.2 UART, 4.6 TIMER, 4.7 WATCHDOG)
 * and RP2350 (7.5, 8.1, 8.2, 8.6, 9, 12.1, 12.8, 12.9, 8.5 TICKS): the second moved the addresses and kept the blocks.
 * HAL_RP2 is 2040 or 2350. UART0 on GPIO 0 (out) and 1 (in). Time is that of the chip's timer of 1 MHz; SysTick wakes. */
#include "hal_core.h"

#if HAL_RP2 == 2040
#define HZ 125000000u
#define POST_DIV2 2u
#define POST_DIV1 6u
#define RESETS 0x4000c000u
#define RESET_IO (1u << 5)
#define RESET_PADS (1u << 8)
#define RESET_PLL (1u << 12)
#define RESET_TIMER (1u << 21)
#define RESET_UART (1u << 22)
#define CLOCKS 0x40008000u
#define XOSC 0x40024000u
#define PLL 0x40028000u
#define PSM 0x40010000u
#define PSM_ALL 0x0001fffcu             /* all but the two oscillators */
#define IO_BANK0 0x40014000u
#define PADS 0x4001c000u
#define UART 0x40034000u
#define UART_IRQ 20u
#define TIMER 0x40054000u
#define WATCHDOG 0x40058000u
#define WATCHDOG_PER_US 2u              /* erratum RP2040-E1: it counts twice */
#define ROSC_RANDOM REG(0x4006001cu)
#elif HAL_RP2 == 2350
#define HZ 150000000u
#define POST_DIV2 2u
#define POST_DIV1 5u
#define RESETS 0x40020000u
#define RESET_IO (1u << 6)
#define RESET_PADS (1u << 9)
#define RESET_PLL (1u << 14)
#define RESET_TIMER (1u << 23)
#define RESET_UART (1u << 26)
#define CLOCKS 0x40010000u
#define XOSC 0x40048000u
#define PLL 0x40050000u
#define PSM 0x40018000u
#define PSM_ALL 0x01fffff3u             /* all but the two oscillators */
#define IO_BANK0 0x40028000u
#define PADS 0x40038000u
#define UART 0x40070000u
#define UART_IRQ 33u
#define TIMER 0x400b0000u
#define TICKS 0x40108000u
#define WATCHDOG 0x400d8000u
#define WATCHDOG_PER_US 1u
#define ROSC_RANDOM REG(0x400e8018u)
#else
#error "HAL_RP2 must be 2040 or 2350"
#endif

#define RESETS_CLEAR REG(RESETS + 0x3000u)      /* bits written here are cleared in RESET */
#define RESETS_DONE (RESETS + 0x8u)

#define XOSC_CTRL REG(XOSC)
#define XOSC_STATUS (XOSC + 0x4u)
#define XOSC_STARTUP REG(XOSC + 0xcu)
#define PLL_CS PLL
#define PLL_PWR_CLEAR REG(PLL + 0x3004u)
#define PLL_FBDIV REG(PLL + 0x8u)
#define PLL_PRIM REG(PLL + 0xcu)
#define CLK_REF_CTRL REG(CLOCKS + 0x30u)
#define CLK_REF_SELECTED (CLOCKS + 0x38u)
#define CLK_SYS_CTRL REG(CLOCKS + 0x3cu)
#define CLK_SYS_SELECTED (CLOCKS + 0x44u)
#define CLK_PERI_CTRL REG(CLOCKS + 0x48u)

#define UART_DR REG(UART)
#define UART_FR REG(UART + 0x18u)       /* bit 4: nothing came; 5: no room to send */
#define UART_IBRD REG(UART + 0x24u)
#define UART_FBRD REG(UART + 0x28u)
#define UART_LCR REG(UART + 0x2cu)
#define UART_CR REG(UART + 0x30u)
#define UART_IMSC REG(UART + 0x38u)     /* bits 4 receive, 5 send, 6 receive timeout */
#define UART_ICR REG(UART + 0x44u)

#define TIMER_RAWL REG(TIMER + 0x28u)

#define WDOG_CTRL REG(WATCHDOG)
#define WDOG_LOAD REG(WATCHDOG + 0x4u)
#define WDOG_TICK REG(WATCHDOG + 0x2cu) /* RP2040: it gives the timer its microseconds */
#define WDOG_SELECT REG(PSM + 0x8u)
#define WDOG_FULL (HAL_WATCHDOG_S * 1000000u * WATCHDOG_PER_US)

static void out_of_reset(uint32_t blocks)
{
    RESETS_CLEAR = blocks;
    while ((REG(RESETS_DONE) & blocks) != blocks)
        ;
}

/* 12 MHz crystal * 125 = 1500 MHz, divided twice */
static void clocks(void)
{
    XOSC_CTRL = 0xaa0u;
    XOSC_STARTUP = 47;                  /* 1 ms, in units of 256 periods */
    XOSC_CTRL = 0xfabu << 12 | 0xaa0u;
    while (!(REG(XOSC_STATUS) & 1u << 31))
        ;
    CLK_REF_CTRL = 2;                   /* the crystal */
    while (REG(CLK_REF_SELECTED) != 1u << 2)
        ;
    out_of_reset(RESET_PLL);
    PLL_FBDIV = 125;
    PLL_PWR_CLEAR = 1u | 1u << 5;       /* PLL and its oscillator on */
    while (!(REG(PLL_CS) & 1u << 31))
        ;
    PLL_PRIM = POST_DIV1 << 16 | POST_DIV2 << 12;
    PLL_PWR_CLEAR = 1u << 3;            /* the dividers */
    CLK_SYS_CTRL = 1;                   /* from the auxiliary source 0, the PLL */
    while (REG(CLK_SYS_SELECTED) != 1u << 1)
        ;
    CLK_PERI_CTRL = 1u << 11;           /* enabled, from the system's clock */
}

uint32_t board_start(void)
{
    clocks();
#if HAL_RP2 == 2040
    WDOG_TICK = 1u << 9 | 12u;
#else
    for (uint32_t at = TICKS + 0x18u; at <= TICKS + 0x30u; at += 0x18u) {      /* timer 0 and watchdog */
        REG(at + 0x4u) = 12;
        REG(at) = 1;
    }
#endif
    out_of_reset(RESET_IO | RESET_PADS | RESET_TIMER | RESET_UART);
    REG(PADS + 0x4u) = 0x56u;           /* GPIO 0: 4 mA, input enabled, Schmitt trigger; on the RP2350 no longer isolated */
    REG(PADS + 0x8u) = 0x5au;           /* GPIO 1: pulled up too */
    REG(IO_BANK0 + 0x4u) = 2;           /* function 2: UART */
    REG(IO_BANK0 + 0xcu) = 2;
    uint32_t divider = (HZ * 4u + HAL_BAUD / 2u) / HAL_BAUD;   /* HZ / (16 * baud) in 6 fractional bits */
    UART_IBRD = divider >> 6;
    UART_FBRD = divider & 63u;
    UART_LCR = 3u << 5 | 1u << 4;       /* 8 bits, FIFOs on */
    UART_CR = 1u | 1u << 8 | 1u << 9;
    hal_core_enable(UART_IRQ);
    WDOG_SELECT = PSM_ALL;
    WDOG_LOAD = WDOG_FULL;
    WDOG_CTRL = 1u << 30;
    return HZ;
}

uint32_t board_chance(void)
{
    uint32_t chance = 0;
    for (int i = 0; i < 32; i++)
        chance = chance << 1 | (ROSC_RANDOM & 1u);
    return chance;
}

uint32_t hal_time_us(void)
{
    return TIMER_RAWL;
}

int board_send(uint8_t byte)
{
    if (UART_FR & 1u << 5)
        return 0;
    UART_DR = byte;
    return 1;
}

static void interrupt(uint32_t bits, int on)
{
    if (on)
        UART_IMSC |= bits;
    else
        UART_IMSC &= ~bits;
}

void board_send_interrupt(int on)
{
    interrupt(1u << 5, on);
}

#define RECEIVE (1u << 4 | 1u << 6)

static void receive(void)
{
    while (!(UART_FR & 1u << 4)) {
        if (!hal_core_room()) {
            interrupt(RECEIVE, 0);
            break;
        }
        hal_core_received((uint8_t)UART_DR);
    }
}

/* A few bytes that stayed in the FIFO while the interrupt was off do not interrupt: they are fetched here. */
void board_receive_interrupt(int on)
{
    interrupt(RECEIVE, on);
    if (on)
        receive();
}

void ecg_irq(int32_t number)
{
    (void)number;
    UART_ICR = 1u << 5 | 1u << 6;
    receive();
    hal_core_send();
}

void hal_watchdog(void)
{
    WDOG_LOAD = WDOG_FULL;
}
