/* SPDX-License-Identifier: Apache-2.0
 *
 * The inner loops of attention for the DSP extension: by hand for Thumb, whose fourteen registers they
 * need, and the same in C. */
#include "ecg_attention_dsp.h"

#if ECG_THUMB_DSP
/* r0 k, r1 q, r2 r3 a pair of rows of both queries, r12 lr that of two keys, r4-r7 sums of the first
 * query, r8-r11 of the second. Stack: q, end, to; apart, fours. */
__asm__("   .macro ECG_SUMS\n"
        "   ldrd r2, r3, [r1], #8\n"
        "   ldrd r12, lr, [r0], #8\n"
        "   smlad r4, r2, r12, r4\n"
        "   smlad r8, r3, r12, r8\n"
        "   smlad r5, r2, lr, r5\n"
        "   smlad r9, r3, lr, r9\n"
        "   ldrd r12, lr, [r0], #8\n"
        "   smlad r6, r2, r12, r6\n"
        "   smlad r10, r3, r12, r10\n"
        "   smlad r7, r2, lr, r7\n"
        "   smlad r11, r3, lr, r11\n"
        "   .endm\n"
        "   .section .text.ecg_attention_score, \"ax\"\n"
        "   .syntax unified\n"
        "   .thumb\n"
        "   .global ecg_attention_score\n"
        "   .type ecg_attention_score, %function\n"
        "   .thumb_func\n"
        "ecg_attention_score:\n"
        "   push {r1-r11, lr}\n"
        "1: ldrd r1, r2, [sp]\n"
        "   subs r2, r2, r1\n"
        "   lsls r2, r2, #29\n"            /* carry: the count of pairs is odd */
        "   ldrd r2, r3, [r1], #8\n"
        "   ldrd r12, lr, [r0], #8\n"
        "   smuad r4, r2, r12\n"
        "   smuad r8, r3, r12\n"
        "   smuad r5, r2, lr\n"
        "   smuad r9, r3, lr\n"
        "   ldrd r12, lr, [r0], #8\n"
        "   smuad r6, r2, r12\n"
        "   smuad r10, r3, r12\n"
        "   smuad r7, r2, lr\n"
        "   smuad r11, r3, lr\n"
        "   bcc 3f\n"
        "   b 4f\n"
        "2: ECG_SUMS\n"
        "3: ECG_SUMS\n"
        "4: ldr r2, [sp, #4]\n"
        "   cmp r1, r2\n"
        "   blo 2b\n"
        "   ldr r3, [sp, #8]\n"
        "   ldrd r1, r2, [sp, #48]\n"
        "   add r1, r1, r3\n"
        "   stm r3!, {r4-r7}\n"
        "   stm r1, {r8-r11}\n"
        "   str r3, [sp, #8]\n"
        "   subs r2, r2, #1\n"
        "   str r2, [sp, #52]\n"
        "   bne 1b\n"
        "   pop {r1-r11, pc}\n"
        "   .size ecg_attention_score, . - ecg_attention_score\n"
        "   .text\n");
#else
void ecg_attention_score(const uint32_t *k, const uint32_t *q, const uint32_t *end, int32_t *to,
                         int32_t apart, int32_t fours)
{
    for (; fours; fours--, to += FOUR) {
        int32_t a[FOUR] = {0}, b[FOUR] = {0};
        for (const uint32_t *two = q; two < end; two += 2, k += FOUR) {
            for (int i = 0; i < FOUR; i++) {
                a[i] = ecg_smlad(two[0], k[i], a[i]);
                b[i] = ecg_smlad(two[1], k[i], b[i]);
            }
        }
        memcpy(to, a, sizeof a);
        memcpy(to + apart / 4, b, sizeof b);
    }
}
#endif

#if ECG_THUMB_DSP
/* the loop knows where the fields are */
typedef char ecg_places[offsetof(ecg_weighted, out) == 16 && offsetof(ecg_weighted, twice) == 44 ? 1 : -1];
/* r0 e, r1 r2 two rows of v, lr where the first one's last four keys start, r4 r5 sums of both rows of
 * weights over the first, r6 r7 over the second. r12 and the word on the stack: the address of x->out. */
__asm__("   .macro ECG_FOUR\n"
        "   ldm r0!, {r8-r11}\n"
        "   ldr r3, [r1], #4\n"
        "   sxtb16 r12, r3\n"
        "   sxtb16 r3, r3, ror #8\n"
        "   smlad r4, r12, r8, r4\n"
        "   smlad r5, r12, r10, r5\n"
        "   smlad r4, r3, r9, r4\n"
        "   smlad r5, r3, r11, r5\n"
        "   ldr r3, [r2], #4\n"
        "   sxtb16 r12, r3\n"
        "   sxtb16 r3, r3, ror #8\n"
        "   smlad r6, r12, r8, r6\n"
        "   smlad r7, r12, r10, r7\n"
        "   smlad r6, r3, r9, r6\n"
        "   smlad r7, r3, r11, r7\n"
        "   .endm\n"
        "   .macro ECG_CODE sum, factor, to:vararg\n"     /* (sum * factor + 2^39) >> 40; r10 is 128 */
        "   smmla \\sum, \\sum, \\factor, r10\n"
        "   ssat \\sum, #8, \\sum, asr #8\n"
        "   strb \\sum, [\\to]\n"
        "   .endm\n"
        "   .section .text.ecg_attention_values, \"ax\"\n"
        "   .syntax unified\n"
        "   .thumb\n"
        "   .global ecg_attention_values\n"
        "   .type ecg_attention_values, %function\n"
        "   .thumb_func\n"
        "ecg_attention_values:\n"
        "   adds r0, r0, #16\n"
        "   push {r0, r4-r11, lr}\n"
        "   mov r12, r0\n"
        "1: ldmdb r12, {r0, r1, r2, lr}\n"
        "   add r2, r2, r1\n"
        "   add lr, lr, r1\n"
        "   movs r4, #0\n"
        "   movs r5, #0\n"
        "   movs r6, #0\n"
        "   movs r7, #0\n"
        "   cmp r1, lr\n"
        "   bhs 3f\n"
        "2: ECG_FOUR\n"
        "   cmp r1, lr\n"
        "   blo 2b\n"
        "3: ldr r12, [sp]\n"
        "   ldr r3, [r12, #28]\n"
        "   subs r1, r1, r3\n"
        "   subs r2, r2, r3\n"
        "   ECG_FOUR\n"
        "   ldr r12, [sp]\n"
        "   ldm r12, {r0, r1, r2, r3, r8, r9}\n"      /* out, out_pitch, apart, both factors, v_step */
        "   mov r10, #128\n"
        "   cmp r2, #0\n"
        "   blt 5f\n"
        "   ECG_CODE r5, r8, r0, r2\n"
        "   ECG_CODE r4, r3, r0\n"
        "   add r0, r0, r1\n"
        "   ECG_CODE r7, r8, r0, r2\n"
        "   ECG_CODE r6, r3, r0\n"
        "4: add r0, r0, r1\n"
        "   ldr r1, [r12, #-12]\n"
        "   ldr r2, [r12, #24]\n"
        "   add r1, r1, r9\n"
        "   str r1, [r12, #-12]\n"
        "   str r0, [r12]\n"
        "   cmp r1, r2\n"
        "   bne 1b\n"
        "   pop {r0, r4-r11, pc}\n"
        "5: smull lr, r11, r4, r3\n"       /* the first map's and the second one's */
        "   smlal lr, r11, r5, r8\n"
        "   add r11, r11, r10\n"
        "   ssat r11, #8, r11, asr #8\n"
        "   strb r11, [r0]\n"
        "   add r0, r0, r1\n"
        "   smull lr, r11, r6, r3\n"
        "   smlal lr, r11, r7, r8\n"
        "   add r11, r11, r10\n"
        "   ssat r11, #8, r11, asr #8\n"
        "   strb r11, [r0]\n"
        "   b 4b\n"
        "   .size ecg_attention_values, . - ecg_attention_values\n"
        "   .text\n");
#else
static void add_four(const uint32_t *e, const int8_t *v, int32_t sum[2])
{
    const uint32_t v02 = ecg_even(ecg_load4(v)), v13 = ecg_odd(ecg_load4(v));
    sum[0] = ecg_smlad(v13, e[1], ecg_smlad(v02, e[0], sum[0]));
    sum[1] = ecg_smlad(v13, e[3], ecg_smlad(v02, e[2], sum[1]));
}

void ecg_attention_values(ecg_weighted *x)
{
    do {
        for (int row = 0; row < 2; row++) {
            const int8_t *v = x->v + row * x->v_pitch;
            const uint32_t *e = x->e;
            int32_t sum[2] = {0, 0};
            for (const int8_t *last = v + x->rest; v < last; v += FOUR, e += FOUR)
                add_four(e, v, sum);
            add_four(e, v - x->twice, sum);
            if (x->apart < 0) {
                *x->out = ecg_attention_out2(sum[0], x->factor[0], sum[1], -x->factor[1]);
            } else {
                x->out[x->apart] = ecg_attention_out(sum[1], x->factor[1]);
                *x->out = ecg_attention_out(sum[0], x->factor[0]);
            }
            x->out += x->out_pitch;
        }
        x->v += x->v_step;
    } while (x->v != x->end);
}
#endif
