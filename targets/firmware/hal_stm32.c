/* SPDX-License-Identifier: Apache-2.0
 *
 * STM32: what the families share, over a table of what they do not. HAL_STM32 is the part: 401, 405, 446, 103, 476, 4505
 * (L4R5), 71 (G071 and G0B1) or 743. Addresses and bits still have to be checked against RM0368 (F401), RM0090 (F405),
 * RM0390 (F446), RM0008 (F103), RM0351 (L476), RM0432 (L4R5), RM0444 (G0), RM0433 (H743), chapters RCC, FLASH, GPIO,
 * USART, IWDG. All clocks come from the internal RC oscillator, so that no crystal is needed: good to 1 %, which the
 * UART takes; the rate of samples is the front-end's matter. */
#include "hal_core.h"

/* ---- the table. PINS_A(2, 3) etc.: bits of two pins in registers of 1, 2 and 4 bits a pin */

#if HAL_STM32 == 401 || HAL_STM32 == 405 || HAL_STM32 == 446
#define RCC 0x40023800u
#define RCC_PLLCFGR REG(RCC + 0x04u)
#define RCC_CFGR REG(RCC + 0x08u)
#define RCC_GPIO REG(RCC + 0x30u)       /* AHB1ENR */
#define RCC_APB1 REG(RCC + 0x40u)
#define RCC_APB2 REG(RCC + 0x44u)
#define FLASH_ACR REG(0x40023c00u)
#define GPIO_UART 0x40020000u           /* GPIOA */
#define GPIO_BIT 0
#define AF 7u
#define UART_V1
#if HAL_STM32 == 405
#define HZ 168000000u
#define UART 0x40011000u                /* USART1 on PA9 and PA10 */
#define UART_HZ (HZ / 2u)
#define UART_IRQ 37u
#define RCC_UART RCC_APB2
#define RCC_UART_BIT 4
#define PIN_TX 9u
#else
#define UART 0x40004400u                /* USART2 on PA2 and PA3: the Nucleo's debugger */
#define UART_IRQ 38u
#define RCC_UART RCC_APB1
#define RCC_UART_BIT 17
#define PIN_TX 2u
#if HAL_STM32 == 401
#define HZ 84000000u
#define UART_HZ (HZ / 2u)
#else
#define HZ 168000000u                   /* 180 would need the over-drive */
#define UART_HZ (HZ / 4u)
#endif
#endif

#elif HAL_STM32 == 103
#define RCC 0x40021000u
#define RCC_CFGR REG(RCC + 0x04u)
#define RCC_APB2 REG(RCC + 0x18u)
#define RCC_GPIO RCC_APB2
#define FLASH_ACR REG(0x40022000u)
#define GPIO_UART 0x40010800u           /* GPIOA */
#define GPIO_BIT 2
#define HZ 64000000u
#define UART_V1
#define UART 0x40013800u                /* USART1 on PA9 and PA10 */
#define UART_HZ HZ
#define UART_IRQ 37u
#define RCC_UART RCC_APB2
#define RCC_UART_BIT 14
#define PIN_TX 9u

#elif HAL_STM32 == 476 || HAL_STM32 == 4505
#define RCC 0x40021000u
#define RCC_CFGR REG(RCC + 0x08u)
#define RCC_PLLCFGR REG(RCC + 0x0cu)
#define RCC_GPIO REG(RCC + 0x4cu)       /* AHB2ENR */
#define RCC_APB1 REG(RCC + 0x58u)       /* APB1ENR1 */
#define FLASH_ACR REG(0x40022000u)
#define HZ 80000000u                    /* range 1 without boost */
#define UART_HZ HZ
#if HAL_STM32 == 476
#define GPIO_UART 0x48000000u           /* GPIOA: PA2 and PA3 */
#define GPIO_BIT 0
#define AF 7u
#define UART 0x40004400u                /* USART2 */
#define UART_IRQ 38u
#define RCC_UART RCC_APB1
#define RCC_UART_BIT 17
#define PIN_TX 2u
#else
#define GPIO_UART 0x48001800u           /* GPIOG: PG7 and PG8 */
#define GPIO_BIT 6
#define AF 8u
#define UART 0x40008000u                /* LPUART1 */
#define UART_LOW_POWER
#define UART_IRQ 70u
#define RCC_UART REG(RCC + 0x5cu)       /* APB1ENR2 */
#define RCC_UART_BIT 0
#define PIN_TX 7u
#endif

#elif HAL_STM32 == 71
#define RCC 0x40021000u
#define RCC_CFGR REG(RCC + 0x08u)
#define RCC_PLLCFGR REG(RCC + 0x0cu)
#define RCC_GPIO REG(RCC + 0x34u)       /* IOPENR */
#define FLASH_ACR REG(0x40022000u)
#define GPIO_UART 0x50000000u           /* GPIOA: PA2 and PA3 */
#define GPIO_BIT 0
#define AF 1u
#define HZ 64000000u
#define UART 0x40004400u                /* USART2 */
#define UART_HZ HZ
#define UART_IRQ 28u
#define RCC_UART REG(RCC + 0x3cu)       /* APBENR1 */
#define RCC_UART_BIT 17
#define PIN_TX 2u

#elif HAL_STM32 == 743
#define RCC 0x58024400u
#define RCC_GPIO REG(RCC + 0xe0u)       /* AHB4ENR */
#define GPIO_UART 0x58020c00u           /* GPIOD: PD8 and PD9 */
#define GPIO_BIT 3
#define AF 7u
#define HZ 64000000u                    /* the RC oscillator as it is after reset; the PLL is left alone */
#define UART 0x40004800u                /* USART3 */
#define UART_HZ HZ
#define UART_IRQ 39u
#define RCC_UART REG(RCC + 0xe8u)       /* APB1LENR */
#define RCC_UART_BIT 18
#define PIN_TX 8u
#define IWDG 0x58004800u                /* IWDG1 */

#else
#error "HAL_STM32 must be 401, 405, 446, 103, 476, 4505, 71 or 743"
#endif

#define PIN_RX (PIN_TX + 1u)
#define RCC_CR REG(RCC)
#define PLLON (1u << 24)
#define PLLRDY (1u << 25)
#define HSION_L4 (1u << 8)
#define HSIRDY_L4 (1u << 10)
#define GPIO_MODER REG(GPIO_UART)
#define GPIO_AFR(pin) REG(GPIO_UART + 0x20u + (pin) / 8u * 4u)

#ifdef UART_V1
#define UART_SR REG(UART)               /* bit 5 RXNE, bit 7 TXE */
#define UART_RDR REG(UART + 0x04u)      /* DR, both ways */
#define UART_TDR REG(UART + 0x04u)
#define UART_BRR REG(UART + 0x08u)
#define UART_CR1 REG(UART + 0x0cu)
#define UART_ON (1u << 13)
#else
#define UART_CR1 REG(UART)
#define UART_BRR REG(UART + 0x0cu)
#define UART_SR REG(UART + 0x1cu)       /* ISR */
#define UART_ICR REG(UART + 0x20u)
#define UART_RDR REG(UART + 0x24u)
#define UART_TDR REG(UART + 0x28u)
#define UART_ON 1u
#endif
#define RXNE (1u << 5)                  /* RXNEIE and TXEIE of CR1 are the same bits */
#define TXE (1u << 7)

#ifndef IWDG
#define IWDG 0x40003000u
#endif
#define IWDG_KR REG(IWDG)
#define IWDG_PR REG(IWDG + 0x04u)
#define IWDG_RLR REG(IWDG + 0x08u)

/* ---- clocks */

#if HAL_STM32 == 401 || HAL_STM32 == 405 || HAL_STM32 == 446
/* 16 MHz / 16 * 336 / 2 or 4; wait states for 3.3 V */
static void clocks(void)
{
    uint32_t divide = HZ == 84000000u ? 1u : 0;
    FLASH_ACR = 7u << 8 | (HZ == 84000000u ? 2u : 5u);
    RCC_PLLCFGR = 2u << 28 | 7u << 24 | divide << 16 | 336u << 6 | 16u;
    RCC_CR |= PLLON;
    if (hal_core_await(RCC, PLLRDY, PLLRDY))
        RCC_CFGR = (HZ == 84000000u ? 4u << 10 : 5u << 10 | 4u << 13) | 2u;
}
#elif HAL_STM32 == 103
/* 8 MHz / 2 * 16; APB1 at half of it */
static void clocks(void)
{
    FLASH_ACR = 1u << 4 | 2u;
    RCC_CFGR = 14u << 18 | 4u << 8;
    RCC_CR |= PLLON;
    if (hal_core_await(RCC, PLLRDY, PLLRDY))
        RCC_CFGR |= 2u;
}
#elif HAL_STM32 == 743
static void clocks(void)
{
}
#else
/* 16 MHz * 10 / 2 (L4) or * 8 / 2 (G0) */
static void clocks(void)
{
    RCC_CR |= HSION_L4;
    hal_core_await(RCC, HSIRDY_L4, HSIRDY_L4);
#if HAL_STM32 == 71
    FLASH_ACR = 1u << 8 | 2u;
    RCC_PLLCFGR = 1u << 29 | 1u << 28 | 8u << 8 | 2u;
#else
    FLASH_ACR = 7u << 8 | 4u;
    RCC_PLLCFGR = 1u << 24 | 10u << 8 | 2u;
#endif
    RCC_CR |= PLLON;
    if (hal_core_await(RCC, PLLRDY, PLLRDY))
        RCC_CFGR = HAL_STM32 == 71 ? 2u : 3u;
}
#endif

/* ---- link */

static void pins(void)
{
    RCC_GPIO |= 1u << GPIO_BIT;
#if HAL_STM32 == 4505
    RCC_APB1 |= 1u << 28;
    REG(0x40007004u) |= 1u << 9;        /* PWR_CR2.IOSV: port G has a supply of its own */
#endif
#if HAL_STM32 == 103
    /* CRH: push-pull of 50 MHz by the UART, input */
    REG(GPIO_UART + 0x04u) = (REG(GPIO_UART + 0x04u) & ~0xff0u) | 0x4b0u;
#else
    GPIO_MODER = (GPIO_MODER & ~(15u << 2u * PIN_TX)) | 10u << 2u * PIN_TX;
    GPIO_AFR(PIN_TX) = (GPIO_AFR(PIN_TX) & ~(15u << 4u * (PIN_TX % 8u))) | AF << 4u * (PIN_TX % 8u);
    GPIO_AFR(PIN_RX) = (GPIO_AFR(PIN_RX) & ~(15u << 4u * (PIN_RX % 8u))) | AF << 4u * (PIN_RX % 8u);
#endif
}

uint32_t board_start(void)
{
    /* After a reset the RC oscillator's bits are set; all zeros are an emulator without clocks, which has its speed. */
    if (RCC_CR)
        clocks();
    pins();
    RCC_UART |= 1u << RCC_UART_BIT;
#ifdef UART_LOW_POWER
    UART_BRR = (uint32_t)((256ull * UART_HZ + HAL_BAUD / 2u) / HAL_BAUD);
#else
    UART_BRR = (UART_HZ + HAL_BAUD / 2u) / HAL_BAUD;
#endif
    UART_CR1 = UART_ON | 1u << 3 | 1u << 2;     /* on, send, receive */
    hal_core_enable(UART_IRQ);
    IWDG_KR = 0xccccu;                          /* start, then unlock: 32 kHz / 256 / 8 s */
    IWDG_KR = 0x5555u;
    IWDG_PR = 6;
    IWDG_RLR = 125u * HAL_WATCHDOG_S;
    return HZ;
}

uint32_t board_chance(void)
{
    return 0;
}

int board_send(uint8_t byte)
{
    if (!(UART_SR & TXE))
        return 0;
    UART_TDR = byte;
    return 1;
}

static void interrupt(uint32_t bit, int on)
{
    if (on)
        UART_CR1 |= bit;
    else
        UART_CR1 &= ~bit;
}

void board_send_interrupt(int on)
{
    interrupt(TXE, on);
}

void board_receive_interrupt(int on)
{
    interrupt(RXNE, on);
}

static void uart_irq(void)
{
#ifndef UART_V1
    UART_ICR = 1u << 3;                         /* an overrun would interrupt for ever; the CRC finds the loss */
#endif
    while (UART_SR & RXNE) {
        if (!hal_core_room()) {
            board_receive_interrupt(0);
            break;
        }
        hal_core_received((uint8_t)UART_RDR);
    }
    hal_core_send();
}

void hal_watchdog(void)
{
    IWDG_KR = 0xaaaau;
}

/* ---- front-end chip on SPI1: PA5 SCK, PA6 MISO, PA7 MOSI, PA4 select, PA1 ready. F4 only */

#ifdef HAL_SENSOR
#if HAL_STM32 != 401 && HAL_STM32 != 405 && HAL_STM32 != 446
#error "the sensor's SPI is written for STM32F4 only"
#endif
#define SPI 0x40013000u
#define SPI_CR1 REG(SPI)                /* 0 CPHA, 1 CPOL, 2 MSTR, 5..3 BR, 6 SPE, 8 SSI, 9 SSM */
#define SPI_SR REG(SPI + 0x08u)         /* 0 RXNE, 1 TXE */
#define SPI_DR REG(SPI + 0x0cu)
#define SPI_HZ (HZ == 84000000u ? HZ : HZ / 2u)
#define GPIOA_BSRR REG(0x40020018u)
#define GPIOA_MODER REG(0x40020000u)
#define GPIOA_AFRL REG(0x40020020u)
#define SYSCFG_EXTICR1 REG(0x40013808u)
#define EXTI_IMR REG(0x40013c00u)
#define EXTI_FTSR REG(0x40013c0cu)
#define EXTI_PR REG(0x40013c14u)
#define EXTI1_IRQ 7
enum { SELECT = 4, READY = 1 };

void board_spi_start(uint32_t hz, int mode)
{
    uint32_t divider = 0;               /* 2, 4, 8 ... 256 */
    while (divider < 7 && SPI_HZ >> (divider + 1u) > hz)
        divider++;
    RCC_GPIO |= 1u;
    RCC_APB2 |= 1u << 12 | 1u << 14;    /* SPI1, SYSCFG */
    GPIOA_BSRR = 1u << SELECT;
    GPIOA_MODER = (GPIOA_MODER & ~0xff0cu) | 0xa900u;
    GPIOA_AFRL = (GPIOA_AFRL & ~0xfff00000u) | 0x55500000u;
    SPI_CR1 = 1u << 9 | 1u << 8 | divider << 3 | 1u << 2 | (mode & 1u);
    SPI_CR1 |= 1u << 6;
}

void board_spi(uint8_t *bytes, uint32_t n)
{
    GPIOA_BSRR = 1u << (SELECT + 16);
    for (uint32_t i = 0; i < n; i++) {
        SPI_DR = bytes[i];
        hal_core_await(SPI + 0x08u, 1u, 1u);
        bytes[i] = (uint8_t)SPI_DR;
    }
    GPIOA_BSRR = 1u << SELECT;
}

void board_ready_interrupt(void)
{
    SYSCFG_EXTICR1 &= ~0xf0u;           /* line 1 is PA1 */
    EXTI_FTSR |= 1u << READY;
    EXTI_IMR |= 1u << READY;
    hal_core_enable(EXTI1_IRQ);
}
#endif

void ecg_irq(int32_t number)
{
#ifdef HAL_SENSOR
    if (number == EXTI1_IRQ) {
        EXTI_PR = 1u << READY;
        hal_sensor_ready();
        return;
    }
#endif
    (void)number;
    uart_irq();
}
