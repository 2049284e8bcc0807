/* SPDX-License-Identifier: Apache-2.0 */
#include "ecg_boot.h"

#define CFSR (*(volatile uint32_t *)0xe000ed28u)
#define BFAR (*(volatile uint32_t *)0xe000ed38u)
#define AIRCR (*(volatile uint32_t *)0xe000ed0cu)
#define PAINT 0xc5c5c5c5u
#define STKOF (1u << 20)        /* in CFSR: the core met the stack's limit and pushed no frame */

/* placed by the linker script */
extern uint32_t ecg_data_load[], ecg_data_start[], ecg_data_end[], ecg_bss_start[], ecg_bss_end[];
extern uint32_t ecg_stack_bottom[], ecg_stack_top[];

void ecg_boot_c(void);
void ecg_fault_taken(const uint32_t *frame, uint32_t link);

ecg_fault_note ecg_faulted __attribute__((section(".noinit")));

/* Reset has set up the stack and the coprocessors; variables come next. Loops, not memcpy: a library may be slower to
 * start with than these words. */
void ecg_boot_c(void)
{
    const uint32_t *from = ecg_data_load;
    for (volatile uint32_t *to = ecg_data_start; to < ecg_data_end; to++)
        *to = *from++;
    for (volatile uint32_t *to = ecg_bss_start; to < ecg_bss_end; to++)
        *to = 0;
    main();
    for (;;)
        ;
}

/* `link` is EXC_RETURN; `frame` is where the core put r0-r3, r12, lr, pc, psr, unless the stack was full. */
void ecg_fault_taken(const uint32_t *frame, uint32_t link)
{
    ecg_fault_note note = { .magic = ECG_FAULTED, .lr = link, .sp = (uint32_t)(uintptr_t)frame };
#if !defined(__ARM_ARCH_6M__)
    note.status = CFSR;
    note.address = BFAR;
#endif
    if (!(note.status & STKOF) && frame >= ecg_stack_bottom && frame + 8 <= ecg_stack_top) {
        note.lr = frame[5];
        note.pc = frame[6];
        note.psr = frame[7];
    }
    ecg_fault(&note);
    for (;;)
        ;
}

__attribute__((weak)) void ecg_fault(const ecg_fault_note *note)
{
    ecg_faulted = *note;
    ecg_reboot();
}

__attribute__((weak)) void ecg_irq(int32_t number)
{
    ecg_fault_note note = { .magic = ECG_FAULTED, .psr = (uint32_t)(number + 16) };
    ecg_fault(&note);
}

__attribute__((weak)) void ecg_tick(void)
{
}

void ecg_reboot(void)
{
    __asm__ volatile("dsb" ::: "memory");
    AIRCR = 0x05fa0004u;        /* SYSRESETREQ */
    for (;;)
        ;
}

uint32_t ecg_stack_size(void)
{
    return (uint32_t)((uintptr_t)ecg_stack_top - (uintptr_t)ecg_stack_bottom);
}

uint32_t ecg_stack_used(void)
{
    const volatile uint32_t *word = ecg_stack_bottom;
    while (word < ecg_stack_top && *word == PAINT)
        word++;
    return (uint32_t)((uintptr_t)ecg_stack_top - (uintptr_t)word);
}
