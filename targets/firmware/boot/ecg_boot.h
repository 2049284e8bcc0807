/* SPDX-License-Identifier: Apache-2.0
 *
 * What the start-up code gives to an image and what it asks of it. */
#ifndef ECG_BOOT_H
#define ECG_BOOT_H

#include <stdint.h>

/* What a fault left behind; survives the reset that follows it. */
typedef struct {
    uint32_t magic;             /* ECG_FAULTED when the last reset came from a fault */
    uint32_t pc, lr, psr;       /* of the code that faulted; pc is 0 where its frame could not be read */
    uint32_t status, address;   /* CFSR and BFAR, 0 on cores that have none */
    uint32_t sp;
} ecg_fault_note;
#define ECG_FAULTED 0xfa017ed0u
extern ecg_fault_note ecg_faulted;

/* Called with what is known of a fault, on a fresh stack; must not return. Unless an image brings its own, the note is
 * kept in RAM and the processor is reset. */
void ecg_fault(const ecg_fault_note *note);

/* Interrupts: number 0 on is an external one, below 0 a system exception. Unless an image brings its own: a fault. */
void ecg_irq(int32_t number);

/* SysTick. Unless an image brings its own: nothing. */
void ecg_tick(void);

/* Reset of the whole processor. */
void ecg_reboot(void);

/* Most bytes of stack in use since reset, and bytes there are. */
uint32_t ecg_stack_used(void);
uint32_t ecg_stack_size(void);

/* A region of the instruction counter begins; `name` is a string literal, "" ends the region before. */
void ecg_mark(const char *name);

/* Limits of the section .ecg_model. */
extern const uint8_t ecg_model_start[], ecg_model_end[];

int main(void);

#endif
