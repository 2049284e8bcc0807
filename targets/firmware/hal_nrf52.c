/* SPDX-License-Identifier: Apache-2.0
 *
 * nRF52840 (to be checked against product specification 4413_417, CLOCK .. GPIOTE) on the nRF52840 DK: UART on
 * P0.06 (out) and P0.08 (in), the debugger's serial port. Time comes from the RTC, in steps of 30.5 us: SysTick stands
 * still while the core sleeps, and a timer would keep the fast clock running. */
#include "hal_core.h"

#define HZ 64000000u

#define CLOCK 0x40000000u
#define LFCLKSTART REG(CLOCK + 0x008u)
#define LFCLKSTARTED (CLOCK + 0x104u)
#define LFCLKSRC REG(CLOCK + 0x518u)    /* 1: the crystal */

#define RTC 0x40011000u                 /* RTC1 */
#define RTC_START REG(RTC)
#define RTC_OVERFLOW REG(RTC + 0x104u)
#define RTC_COMPARE0 REG(RTC + 0x140u)
#define RTC_INTENSET REG(RTC + 0x304u)  /* 1 overflow, 16 compare 0 */
#define RTC_COUNTER REG(RTC + 0x504u)   /* 24 bits of 32768 Hz */
#define RTC_CC0 REG(RTC + 0x540u)
#define RTC_IRQ 17

#define UART 0x40002000u
#define UART_STARTRX REG(UART)
#define UART_STARTTX REG(UART + 0x008u)
#define UART_RXDRDY REG(UART + 0x108u)
#define UART_TXDRDY REG(UART + 0x11cu)
#define UART_INTENSET REG(UART + 0x304u)        /* 2 a byte came, 7 a byte went */
#define UART_INTENCLR REG(UART + 0x308u)
#define UART_ENABLE REG(UART + 0x500u)
#define UART_PSEL_TXD REG(UART + 0x50cu)
#define UART_PSEL_RXD REG(UART + 0x514u)
#define UART_RXD REG(UART + 0x518u)
#define UART_TXD REG(UART + 0x51cu)
#define UART_BAUD REG(UART + 0x524u)
#define UART_IRQ 2

#define WDT 0x40010000u
#define WDT_START REG(WDT)
#define WDT_CRV REG(WDT + 0x504u)
#define WDT_CONFIG REG(WDT + 0x50cu)    /* 0: also while asleep */
#define WDT_RR0 REG(WDT + 0x600u)

#define RNG 0x4000d000u
#define RNG_START REG(RNG)
#define RNG_VALRDY (RNG + 0x100u)
#define RNG_VALUE REG(RNG + 0x508u)

#define GPIO_OUTSET REG(0x50000508u)
#define GPIO_OUTCLR REG(0x5000050cu)
#define GPIO_DIRSET REG(0x50000518u)
#define GPIO_CNF(pin) REG(0x50000700u + 4u * (pin))

enum { TX = 6, RX = 8 };

static volatile uint32_t overflows;
static uint8_t sending;                 /* a byte is on its way: TXD takes no other */

uint32_t board_start(void)
{
    LFCLKSRC = 1;
    REG(LFCLKSTARTED) = 0;
    LFCLKSTART = 1;
    while (!REG(LFCLKSTARTED))          /* a quarter of a second: the watchdog is not on yet */
        ;
    RTC_INTENSET = 1u << 1 | 1u << 16;
    RTC_START = 1;
    hal_core_enable(RTC_IRQ);
    GPIO_OUTSET = 1u << TX;
    GPIO_DIRSET = 1u << TX;
    GPIO_CNF(RX) = 3u << 2;             /* input, pulled up */
    UART_PSEL_TXD = TX;
    UART_PSEL_RXD = RX;
    UART_BAUD = 0x01d7e000u;            /* 115200 */
    UART_ENABLE = 4;
    UART_STARTTX = 1;
    UART_STARTRX = 1;
    hal_core_enable(UART_IRQ);
    WDT_CONFIG = 1;
    WDT_CRV = 32768u * HAL_WATCHDOG_S - 1u;
    WDT_START = 1;
    return HZ;
}

uint32_t board_chance(void)
{
    uint32_t chance = 0;
    RNG_START = 1;
    for (int i = 0; i < 4; i++) {
        REG(RNG_VALRDY) = 0;
        hal_core_await(RNG_VALRDY, 1, 1);
        chance = chance << 8 | RNG_VALUE;
    }
    REG(RNG + 0x004u) = 1;              /* stop */
    return chance;
}

/* Also inside of an interrupt that keeps the RTC's waiting: the event counts then. */
uint32_t hal_time_us(void)
{
    uint32_t high, due, count;
    do {
        high = overflows;
        due = RTC_OVERFLOW;
        count = RTC_COUNTER;
    } while (high != overflows || due != RTC_OVERFLOW);
    return (uint32_t)((((uint64_t)(high + (due != 0)) << 24) + count) * 15625u >> 9);
}

/* SysTick is not the clock here, and it must not wake the core. */
void hal_core_clock(uint32_t hz)
{
    (void)hz;
}

void hal_core_alarm(uint32_t us)
{
    RTC_COMPARE0 = 0;
    RTC_CC0 = (RTC_COUNTER + 3u + (us << 9) / 15625u) & 0xffffffu;     /* at least two ticks ahead */
}

int board_send(uint8_t byte)
{
    if (sending)
        return 0;
    sending = 1;
    UART_TXD = byte;
    return 1;
}

/* The event that a byte went is always on: it says that the next one may come. */
void board_send_interrupt(int on)
{
    if (on)
        UART_INTENSET = 1u << 7;
}

void board_receive_interrupt(int on)
{
    if (on)
        UART_INTENSET = 1u << 2;
    else
        UART_INTENCLR = 1u << 2;
}

static void uart_irq(void)
{
    while (UART_RXDRDY) {
        if (!hal_core_room()) {
            board_receive_interrupt(0);
            break;
        }
        UART_RXDRDY = 0;
        hal_core_received((uint8_t)UART_RXD);
    }
    if (UART_TXDRDY) {
        UART_TXDRDY = 0;
        sending = 0;
        hal_core_send();
    }
}

void hal_watchdog(void)
{
    WDT_RR0 = 0x6e524635u;
}

/* ---- front-end chip on SPI0: P1.15 SCK, P1.14 MISO, P1.13 MOSI, P1.12 select, P1.11 ready (the DK's D13 .. D9) */

#ifdef HAL_SENSOR
#define SPI 0x40003000u
#define SPI_READY (SPI + 0x108u)
#define SPI_ENABLE REG(SPI + 0x500u)
#define SPI_PSEL_SCK REG(SPI + 0x508u)
#define SPI_PSEL_MOSI REG(SPI + 0x50cu)
#define SPI_PSEL_MISO REG(SPI + 0x510u)
#define SPI_RXD REG(SPI + 0x518u)
#define SPI_TXD REG(SPI + 0x51cu)
#define SPI_FREQUENCY REG(SPI + 0x524u)
#define SPI_CONFIG REG(SPI + 0x554u)    /* 0 least bit first, 1 CPHA, 2 CPOL */
#define P1_OUTSET REG(0x50000808u)
#define P1_OUTCLR REG(0x5000080cu)
#define P1_DIRSET REG(0x50000818u)
#define P1_CNF(pin) REG(0x50000a00u + 4u * (pin))
#define GPIOTE_IN0 REG(0x40006100u)
#define GPIOTE_INTENSET REG(0x40006304u)
#define GPIOTE_CONFIG0 REG(0x40006510u)
#define GPIOTE_IRQ 6
enum { SCK = 15, MISO = 14, MOSI = 13, SELECT = 12, READY = 11 };

void board_spi_start(uint32_t hz, int mode)
{
    P1_OUTSET = 1u << SELECT;
    P1_DIRSET = 1u << SCK | 1u << MOSI | 1u << SELECT;
    P1_CNF(SCK) = 1;                    /* output that is also read: chapter SPI asks for it */
    P1_CNF(MISO) = 0;
    SPI_PSEL_SCK = 32u + SCK;
    SPI_PSEL_MOSI = 32u + MOSI;
    SPI_PSEL_MISO = 32u + MISO;
    SPI_FREQUENCY = hz >= 4000000u ? 0x40000000u : 0x10000000u;        /* 4 MHz, 1 MHz */
    SPI_CONFIG = (uint32_t)(mode & 1) << 1;
    SPI_ENABLE = 1;
}

void board_spi(uint8_t *bytes, uint32_t n)
{
    P1_OUTCLR = 1u << SELECT;
    for (uint32_t i = 0; i < n; i++) {
        REG(SPI_READY) = 0;
        SPI_TXD = bytes[i];
        hal_core_await(SPI_READY, 1, 1);
        bytes[i] = (uint8_t)SPI_RXD;
    }
    P1_OUTSET = 1u << SELECT;
}

void board_ready_interrupt(void)
{
    P1_CNF(READY) = 3u << 2;
    GPIOTE_CONFIG0 = 2u << 16 | 1u << 13 | (uint32_t)READY << 8 | 1u;  /* event at the falling edge of P1.11 */
    GPIOTE_IN0 = 0;
    GPIOTE_INTENSET = 1;
    hal_core_enable(GPIOTE_IRQ);
}
#endif

void ecg_irq(int32_t number)
{
    if (number == RTC_IRQ) {
        RTC_COMPARE0 = 0;
        if (RTC_OVERFLOW) {
            RTC_OVERFLOW = 0;
            overflows++;
        }
#ifdef HAL_SENSOR
    } else if (number == GPIOTE_IRQ) {
        GPIOTE_IN0 = 0;
        hal_sensor_ready();
#endif
    } else {
        uart_irq();
    }
}
