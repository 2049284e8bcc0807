/* SPDX-License-Identifier: Apache-2.0
 *
 * From reset to main() on every Cortex-M core, and what runs when something faults. No vendor header is needed. */
    .syntax unified
    .thumb

#ifndef ECG_IRQS
#if defined(__ARM_ARCH_6M__)
#define ECG_IRQS 32             /* all that an M0+ can have */
#else
#define ECG_IRQS 160            /* enough for the boards in targets/boards.toml */
#endif
#endif

    .section .vectors, "a"
    .global ecg_vectors
    .balign 4
ecg_vectors:
    .word ecg_stack_top
    .word ecg_boot
    .rept 5                     /* NMI, HardFault, MemManage, BusFault, UsageFault */
    .word ecg_fault_entry
    .endr
    .rept 8                     /* SecureFault, reserved, SVCall, DebugMonitor, PendSV */
    .word ecg_irq_entry
    .endr
    .word ecg_tick              /* SysTick */
    .rept ECG_IRQS
    .word ecg_irq_entry
    .endr
    .size ecg_vectors, . - ecg_vectors

    .section .text.ecg_boot, "ax"
    .global ecg_boot
    .type ecg_boot, %function
    .thumb_func
ecg_boot:
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
    ldr r0, =0xe000ed88         /* CPACR: before any code that a compiler made, it may use vectors at once */
    ldr r1, [r0]
    orr r1, r1, #0x00f00000
    str r1, [r0]
    dsb
    isb
#endif
#if defined(__ARM_FEATURE_MVE)
    ldr r0, =0xe000ed14         /* CCR.LOB: loops without branches */
    ldr r1, [r0]
    orr r1, r1, #0x00080000
    str r1, [r0]
    dsb
    isb
#endif
    ldr r0, =ecg_stack_top      /* a debugger or a boot loader may have left another one */
    msr msp, r0
#if defined(__ARM_ARCH_8M_MAIN__) || defined(__ARM_ARCH_8_1M_MAIN__)
    ldr r0, =ecg_stack_bottom
    msr msplim, r0
#endif
    ldr r0, =0xe000ed08         /* VTOR: the image may not lie where the core looks first */
    ldr r1, =ecg_vectors
    str r1, [r0]
    ldr r0, =ecg_stack_bottom   /* painted for ecg_stack_used() */
    ldr r1, =ecg_stack_top
    ldr r2, =0xc5c5c5c5
1:  stmia r0!, {r2}
    cmp r0, r1
    blo 1b
    bl ecg_boot_c
2:  b 2b
    .pool
    .size ecg_boot, . - ecg_boot

/* ecg_fault_taken(the frame that the core pushed, EXC_RETURN). Where the stack has overflowed or is about to, the handler
 * starts on a fresh one. */
    .section .text.ecg_fault_entry, "ax"
    .type ecg_fault_entry, %function
    .thumb_func
ecg_fault_entry:
    mrs r0, msp
    mov r1, lr
    ldr r2, =ecg_stack_bottom + 256
    cmp r0, r2
    bhs 1f
    ldr r2, =ecg_stack_top
    msr msp, r2
1:  bl ecg_fault_taken
2:  b 2b
    .pool
    .size ecg_fault_entry, . - ecg_fault_entry

/* All other exceptions: ecg_irq(number of the interrupt, below 0 for a system exception) */
    .section .text.ecg_irq_entry, "ax"
    .type ecg_irq_entry, %function
    .thumb_func
ecg_irq_entry:
    mrs r0, ipsr
    subs r0, #16
    ldr r1, =ecg_irq
    bx r1
    .pool
    .size ecg_irq_entry, . - ecg_irq_entry

/* ecg_mark(name): a new region of the instruction counter begins. The load tells the counter which one. */
    .section .text.ecg_mark, "ax"
    .global ecg_mark
    .type ecg_mark, %function
    .thumb_func
ecg_mark:
    ldrb r0, [r0]
    bx lr
    .size ecg_mark, . - ecg_mark

/* ecg_semihost(operation, argument): a request to the debugger or the emulator */
    .section .text.ecg_semihost, "ax"
    .global ecg_semihost
    .type ecg_semihost, %function
    .thumb_func
ecg_semihost:
    bkpt 0xab
    bx lr
    .size ecg_semihost, . - ecg_semihost
