/* SPDX-License-Identifier: Apache-2.0
 *
 * The inner loops of conv_swar.c, in C and in the assembly of the two cores that they are for. */
#ifndef ECG_SWAR_H
#define ECG_SWAR_H

#include "ecg_fixed.h"
#include "ecg_kernels.h"

enum {
    SWAR_COLUMNS = 4,           /* that are computed together, in two words */
    SWAR_LONGEST = 16,          /* taps of a chunk */
    SWAR_TAP = 14,              /* a chunk's first byte tells how much machine code it leaves out: */
    SWAR_FIRST = 2              /* SWAR_FIRST + (SWAR_LONGEST - taps) * SWAR_TAP bytes */
};

/* `count` groups of sums, one for each column. x: two words for each tap; in the next group `step` bytes
 * further on. again: the next group has the same weights; else the channel that follows. x and sum end up
 * moved on. */
typedef struct {
    const uint32_t *x;
    const uint8_t *weight;
    int32_t *sum;
    int32_t count, step, again;
} swar_run;

/* `count` groups of sums become codes: the columns of a group lie `apart` bytes apart, groups `step`
 * bytes. next: every group has its own scale and split; else all have the same. What the pointers end up
 * as is not defined. */
typedef struct {
    const int32_t *sum;
    int8_t *to;
    int32_t apart, step, count, low;
    const ecg_scale *scale;
    const uint8_t *split;
    int32_t next;
} swar_codes;

#if defined(__ARM_ARCH_6M__) || defined(__ARM_ARCH_7M__)
/* Returns what follows the last weights read. */
extern const uint8_t *ecg_swar_sums(swar_run *run);

/* On the M0+ no split may be 0; on the M3 all of them must be. */
extern void ecg_swar_codes(swar_codes *c);
#endif

#if defined(__ARM_ARCH_6M__)
/* The same as the C below. The M0+ multiplies in place and has eight registers that can do everything: r0
 * r1 x, r2 w, r3 r4 chunk sums, r5 the address of x, r6 that of the weights, r7 zero. r8 r9 total, r10 r11
 * high. */
__asm__("   .section .text.ecg_swar_sums, \"ax\"\n"
        "   .syntax unified\n"
        "   .thumb\n"
        "   .global ecg_swar_sums\n"
        "   .type ecg_swar_sums, %function\n"
        "   .thumb_func\n"
        "ecg_swar_sums:\n"
        "   push {r4-r7, lr}\n"
        "   mov r4, r8\n"
        "   mov r5, r9\n"
        "   mov r6, r10\n"
        "   mov r7, r11\n"
        "   push {r4-r7}\n"
        "   mov r12, r0\n"
        "   ldr r5, [r0, #0]\n"
        "   ldr r6, [r0, #4]\n"
        "   ldr r1, [r0, #12]\n"
        "   mov lr, r1\n"
        "   movs r7, #0\n"
        "1: mov r8, r7\n"                       /* a group */
        "   mov r9, r7\n"
        "   mov r10, r7\n"
        "   mov r11, r7\n"
        "2: ldrb r0, [r6]\n"                    /* a chunk: the first tap sets the sums, */
        "   adds r6, #1\n"
        "   ldrsb r2, [r6, r7]\n"
        "   adds r6, #1\n"
        "   ldmia r5!, {r3, r4}\n"
        "   muls r3, r2, r3\n"
        "   muls r4, r2, r4\n"
        "   add pc, r0\n"                       /* the others are entered in the middle */
        "   nop\n"
        "   b 3f\n"
        ".rept 15\n"
        "   ldrsb r2, [r6, r7]\n"
        "   adds r6, #1\n"
        "   ldmia r5!, {r0, r1}\n"
        "   muls r0, r2, r0\n"
        "   muls r1, r2, r1\n"
        "   adds r3, r3, r0\n"
        "   adds r4, r4, r1\n"
        ".endr\n"
        "   add r8, r3\n"
        "   asrs r3, r3, #16\n"                 /* the carry is bit 15 */
        "   adcs r3, r7\n"
        "   add r10, r3\n"
        "   add r9, r4\n"
        "   asrs r4, r4, #16\n"
        "   adcs r4, r7\n"
        "   add r11, r4\n"
        "   b 2b\n"
        "3: mov r0, r8\n"
        "   mov r1, r10\n"
        "   mov r2, r9\n"
        "   mov r3, r11\n"
        "   lsls r4, r1, #16\n"
        "   subs r0, r0, r4\n"
        "   lsls r4, r3, #16\n"
        "   subs r2, r2, r4\n"
        "   mov r4, r12\n"
        "   ldr r5, [r4, #8]\n"
        "   stmia r5!, {r0-r3}\n"
        "   str r5, [r4, #8]\n"
        "   ldr r5, [r4, #0]\n"
        "   ldr r0, [r4, #16]\n"
        "   adds r5, r5, r0\n"
        "   str r5, [r4, #0]\n"
        "   subs r6, #1\n"
        "   mov r0, lr\n"
        "   subs r0, #1\n"
        "   beq 5f\n"
        "   mov lr, r0\n"
        "   ldr r0, [r4, #20]\n"
        "   cmp r0, #0\n"
        "   beq 4f\n"
        "   ldr r6, [r4, #4]\n"
        "4: b 1b\n"
        "5: mov r0, r6\n"
        "   pop {r4-r7}\n"
        "   mov r8, r4\n"
        "   mov r9, r5\n"
        "   mov r10, r6\n"
        "   mov r11, r7\n"
        "   pop {r4-r7, pc}\n"
        "   .size ecg_swar_sums, . - ecg_swar_sums\n"
        "   .text\n");

/* r0 the sums, r1 where to, r2 coarse, r3 fine, r4 split, r5 31 - split; r8 bias, r9 low, r10 apart; see
 * swar_rescale below. */
__asm__("   .section .text.ecg_swar_codes, \"ax\"\n"
        "   .syntax unified\n"
        "   .thumb\n"
        "   .global ecg_swar_codes\n"
        "   .type ecg_swar_codes, %function\n"
        "   .thumb_func\n"
        "ecg_swar_codes:\n"
        "   push {r4-r7, lr}\n"
        "   mov r4, r8\n"
        "   mov r5, r9\n"
        "   mov r6, r10\n"
        "   mov r7, r11\n"
        "   push {r4-r7}\n"
        "   mov r12, r0\n"
        "   ldr r1, [r0, #8]\n"
        "   mov r10, r1\n"
        "   ldr r1, [r0, #16]\n"
        "   mov lr, r1\n"
        "   ldr r1, [r0, #20]\n"
        "   mov r9, r1\n"
        "   ldr r1, [r0, #4]\n"
        "   ldr r0, [r0, #0]\n"
        "1: mov r7, r12\n"                      /* a group: its scale */
        "   ldr r6, [r7, #24]\n"
        "   ldmia r6!, {r3, r5}\n"
        "   mov r8, r3\n"
        "   movs r3, r5\n"
        "   ldr r5, [r7, #28]\n"
        "   ldrb r4, [r5]\n"
        "   ldr r2, [r7, #32]\n"
        "   cmp r2, #0\n"
        "   beq 2f\n"
        "   adds r5, #1\n"
        "   str r5, [r7, #28]\n"
        "   str r6, [r7, #24]\n"
        "2: movs r2, r3\n"                      /* coarse */
        "   movs r5, #0\n"
        "   asrs r2, r4\n"
        "   adcs r2, r5\n"
        "   movs r5, r2\n"
        "   lsls r5, r4\n"
        "   subs r3, r3, r5\n"                  /* fine */
        "   movs r5, #31\n"
        "   subs r5, r5, r4\n"
        "5:\n"
        "   .rept 4\n"
        "   ldmia r0!, {r6}\n"
        "   add r6, r8\n"
        "   movs r7, r6\n"
        "   muls r7, r3, r7\n"
        "   asrs r7, r4\n"
        "   muls r6, r2, r6\n"
        "   adds r6, r6, r7\n"
        "   asrs r6, r5\n"
        "   adds r6, #1\n"
        "   asrs r6, r6, #1\n"
        "   cmp r6, r9\n"
        "   bge 3f\n"
        "   mov r6, r9\n"
        "3: cmp r6, #127\n"
        "   ble 4f\n"
        "   movs r6, #127\n"
        "4: strb r6, [r1]\n"
        "   add r1, r10\n"
        "   .endr\n"
        "   mov r7, r12\n"
        "   ldr r1, [r7, #4]\n"
        "   ldr r6, [r7, #12]\n"
        "   adds r1, r1, r6\n"
        "   str r1, [r7, #4]\n"
        "   mov r6, lr\n"
        "   subs r6, #1\n"
        "   beq 6f\n"
        "   mov lr, r6\n"
        "   ldr r6, [r7, #32]\n"
        "   cmp r6, #0\n"
        "   bne 1b\n"
        "   b 5b\n"                             /* the scale stays */
        "6:\n"
        "   pop {r4-r7}\n"
        "   mov r8, r4\n"
        "   mov r9, r5\n"
        "   mov r10, r6\n"
        "   mov r11, r7\n"
        "   pop {r4-r7, pc}\n"
        "   .size ecg_swar_codes, . - ecg_swar_codes\n"
        "   .text\n");

#elif defined(__ARM_ARCH_7M__)
/* The same as the C below. r1 the address of x, r2 that of the weights, r3 r4 x, r5 w, r6 r7 chunk sums,
 * r8 r9 total, r10 r11 high. */
__asm__("   .section .text.ecg_swar_sums, \"ax\"\n"
        "   .syntax unified\n"
        "   .thumb\n"
        "   .global ecg_swar_sums\n"
        "   .type ecg_swar_sums, %function\n"
        "   .thumb_func\n"
        "ecg_swar_sums:\n"
        "   push {r4-r11, lr}\n"
        "   ldrd r1, r2, [r0]\n"
        "   ldr lr, [r0, #12]\n"
        "1: movs r5, #0\n"                      /* a group */
        "   mov r8, r5\n"
        "   mov r9, r5\n"
        "   mov r10, r5\n"
        "   mov r11, r5\n"
        "2: ldrb r12, [r2], #1\n"               /* a chunk: the first tap sets the sums, */
        "   ldrsb r5, [r2], #1\n"
        "   ldmia r1!, {r3, r4}\n"
        "   mul r6, r3, r5\n"
        "   mul r7, r4, r5\n"
        "   add pc, r12\n"                      /* the others are entered in the middle */
        "   nop.n\n"
        "   b.n 3f\n"
        ".rept 15\n"
        "   ldrsb.w r5, [r2], #1\n"
        "   ldmia.n r1!, {r3, r4}\n"
        "   mla r6, r3, r5, r6\n"
        "   mla r7, r4, r5, r7\n"
        ".endr\n"
        "   add r8, r8, r6\n"
        "   asrs r6, r6, #16\n"                 /* the carry is bit 15 */
        "   adc r10, r10, r6\n"
        "   add r9, r9, r7\n"
        "   asrs r7, r7, #16\n"
        "   adc r11, r11, r7\n"
        "   b 2b\n"
        "3: sub r3, r8, r10, lsl #16\n"
        "   sub r5, r9, r11, lsl #16\n"
        "   mov r4, r10\n"
        "   mov r6, r11\n"
        "   ldr r7, [r0, #8]\n"
        "   stmia r7!, {r3-r6}\n"
        "   str r7, [r0, #8]\n"
        "   ldrd r3, r4, [r0, #16]\n"
        "   ldr r1, [r0, #0]\n"
        "   add r1, r1, r3\n"
        "   str r1, [r0, #0]\n"
        "   sub r2, r2, #1\n"
        "   subs lr, lr, #1\n"
        "   beq 4f\n"
        "   cmp r4, #0\n"
        "   beq 1b\n"
        "   ldr r2, [r0, #4]\n"
        "   b 1b\n"
        "4: mov r0, r2\n"
        "   pop {r4-r11, pc}\n"
        "   .size ecg_swar_sums, . - ecg_swar_sums\n"
        "   .text\n");

/* r0 where to, r1 the sums, r3 the scale, r4 apart, r5 step, r6 bias, r7 mul, r10 all ones with relu. */
__asm__("   .section .text.ecg_swar_codes, \"ax\"\n"
        "   .syntax unified\n"
        "   .thumb\n"
        "   .global ecg_swar_codes\n"
        "   .type ecg_swar_codes, %function\n"
        "   .thumb_func\n"
        "ecg_swar_codes:\n"
        "   push {r4-r11, lr}\n"
        "   ldrd r1, r2, [r0]\n"
        "   ldrd r4, r5, [r0, #8]\n"
        "   ldrd lr, r10, [r0, #16]\n"
        "   ldr r3, [r0, #24]\n"
        "   ldr r11, [r0, #32]\n"
        "   mvn r10, r10\n"                     /* -128 -> 127, 0 -> -1 */
        "   asr r10, r10, #31\n"                /* no bit, or all */
        "1: ldrd r6, r7, [r3]\n"                /* a group: its scale */
        "   mov r0, r2\n"
        "   add r2, r2, r5\n"
        "   cmp r11, #0\n"
        "   it ne\n"
        "   addne r3, r3, #8\n"
        "   .rept 4\n"
        "   ldr r8, [r1], #4\n"
        "   add r8, r8, r6\n"
        "   smull r8, r9, r8, r7\n"
        "   adds r8, r8, #0x80000000\n"
        "   adc r9, r9, #0\n"
        "   ssat r9, #8, r9\n"
        "   and r12, r10, r9, asr #31\n"
        "   bic r9, r9, r12\n"
        "   strb r9, [r0]\n"
        "   add r0, r0, r4\n"
        "   .endr\n"
        "   subs lr, lr, #1\n"
        "   bne 1b\n"
        "   pop {r4-r11, pc}\n"
        "   .size ecg_swar_codes, . - ecg_swar_codes\n"
        "   .text\n");

#else
/* Returns what follows the last weights read. */
static const uint8_t *ecg_swar_sums(swar_run *run)
{
    const uint8_t *weight = run->weight;

    for (int32_t i = 0; i < run->count; i++) {
        const uint32_t *x = run->x + i * (run->step / 4);
        uint32_t total[2] = {0, 0}, high[2] = {0, 0};

        if (run->again)
            weight = run->weight;
        while (*weight) {
            int32_t taps = SWAR_LONGEST - (*weight++ - SWAR_FIRST) / SWAR_TAP;
            uint32_t a[2] = {0, 0};

            for (; taps > 0; taps--, x += 2, weight++) {
                a[0] += (uint32_t)(int8_t)*weight * x[0];
                a[1] += (uint32_t)(int8_t)*weight * x[1];
            }
            for (int32_t j = 0; j < 2; j++) {
                total[j] += a[j];
                high[j] += (uint32_t)((int32_t)a[j] >> 16) + (a[j] >> 15 & 1);
            }
        }
        weight++;
        for (int32_t j = 0; j < 2; j++) {
            run->sum[i * SWAR_COLUMNS + 2 * j] = (int32_t)(total[j] - (high[j] << 16));
            run->sum[i * SWAR_COLUMNS + 2 * j + 1] = (int32_t)high[j];
        }
    }
    return weight;
}

/* (sum + bias) * mul, rounded, from two products of 32 bits: acc * mul = (acc * coarse << split) + acc *
 * fine */
static inline int32_t swar_rescale(int32_t acc, int32_t mul, unsigned split)
{
    int32_t coarse = ((mul >> (split - 1)) + 1) >> 1, fine = mul - (int32_t)((uint32_t)coarse << split);

    return (((acc * coarse + (acc * fine >> split)) >> (31 - split)) + 1) >> 1;
}

static void ecg_swar_codes(swar_codes *c)
{
    const ecg_scale *scale = c->scale;
    const uint8_t *split = c->split;
    const int32_t *sum = c->sum;

    for (int32_t i = 0; i < c->count; i++) {
        for (int32_t j = 0; j < SWAR_COLUMNS; j++) {
            int32_t acc = *sum++ + scale->bias;

            acc = *split ? swar_rescale(acc, scale->mul, *split) : ecg_mulhi(acc, scale->mul);
            c->to[i * c->step + j * c->apart] = (int8_t)ecg_clamp(acc, c->low, 127);
        }
        scale += c->next;
        split += c->next;
    }
}
#endif

#endif
