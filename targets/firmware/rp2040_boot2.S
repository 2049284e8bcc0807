/* SPDX-License-Identifier: Apache-2.0
 *
 * The second stage of the RP2040's boot: the ROM copies the first 256 bytes of flash into RAM, checks the CRC in the last
 * four of them, and runs them. They set the flash interface up to be read in place (data sheet, section 4.10) with the
 * plain read command 03h, which every flash chip knows, and start the image behind them. targets/firmware_image.py puts
 * length and CRC to it. */
    .syntax unified
    .cpu cortex-m0plus
    .thumb

    .section .text, "ax"
    .global boot2
    .thumb_func
boot2:
    ldr r3, =0x18000000         /* SSI */
    movs r1, #0
    str r1, [r3, #0x08]         /* SSIENR: off while it is changed */
    movs r1, #4
    str r1, [r3, #0x14]         /* BAUDR: a quarter of the system's clock */
    ldr r1, =0x001f0300         /* CTRLR0: one line, 32 bits of data, command and address before each read */
    str r1, [r3, #0x00]
    movs r1, #0
    str r1, [r3, #0x04]         /* CTRLR1: one word a time */
    ldr r1, =0x03000218         /* SPI_CTRLR0: command 03h of 8 bits, address of 24 */
    ldr r0, =0x180000f4
    str r1, [r0]
    movs r1, #1
    str r1, [r3, #0x08]         /* on */
    ldr r0, =0x10000100         /* vectors of the image: stack, reset */
    ldr r1, =0xe000ed08
    str r0, [r1]                /* VTOR */
    ldmia r0!, {r1, r2}
    msr msp, r1
    bx r2
    .pool
