/* SPDX-License-Identifier: Apache-2.0
 *
 * Dense layers for Cortex-M4, M7 and M33. The input is expanded once into scratch, as pairs of int16 in the
 * order of the weights. Four outputs are summed side by side, and their codes are stored as one word. */
#include "ecg_dsp.h"
#include "ecg_kernels.h"

/* The outputs scale .. last - 1, a multiple of four, to out. x .. end: pairs of inputs, an even number and
 * at least two. For each pair the weights of four outputs: four pairs, or with 8 bits the words (a0, b0,
 * a1, b1), (c0, d0, c1, d1). */
typedef void fours(const uint32_t *x, const uint32_t *end, const void *weight, const ecg_scale *scale,
                   const ecg_scale *last, int8_t *out, uint32_t relu);

#if ECG_THUMB_DSP

fours ecg_dense4_dsp, ecg_dense4_dsp8;

/* r0-r3: sums. r4, r5: pairs of inputs. r6-r9: weights, r11 too while they are expanded. r10: x. r12: end.
 * lr: weights. The stack, from sp on: x, where to enter the loop, scale, last, out, relu. The loop is
 * unrolled twice. */
__asm__(
    ".syntax unified\n"
    ".macro ecg_products16 x\n"
    "    smlad r0, \\x, r6, r0\n"
    "    smlad r1, \\x, r7, r1\n"
    "    smlad r2, \\x, r8, r2\n"
    "    smlad r3, \\x, r9, r3\n"
    ".endm\n"
    ".macro ecg_products8 x, ab, cd\n"
    "    sxtb16 r11, \\ab\n"
    "    sxtb16 \\ab, \\ab, ror #8\n"
    "    smlad r0, \\x, r11, r0\n"
    "    smlad r1, \\x, \\ab, r1\n"
    "    sxtb16 r11, \\cd\n"
    "    sxtb16 \\cd, \\cd, ror #8\n"
    "    smlad r2, \\x, r11, r2\n"
    "    smlad r3, \\x, \\cd, r3\n"
    ".endm\n"
    ".macro ecg_step16\n"
    "    ldrd r4, r5, [r10], #8\n"
    "    ldm lr!, {r6-r9}\n"
    "    ecg_products16 r4\n"
    "    ldm lr!, {r6-r9}\n"
    "    ecg_products16 r5\n"
    ".endm\n"
    ".macro ecg_step8\n"
    "    ldrd r4, r5, [r10], #8\n"
    "    ldm lr!, {r6-r9}\n"
    "    ecg_products8 r4, r6, r7\n"
    "    ecg_products8 r5, r8, r9\n"
    ".endm\n"
    ".macro ecg_dense4 name, bits\n"
    "    .pushsection .text.\\name, \"ax\", %progbits\n"
    "    .balign 4\n"
    "    .thumb\n"
    "    .thumb_func\n"
    "    .global \\name\n"
    "    .type \\name, %function\n"
    "\\name:\n"
    "    push {r4-r11, lr}\n"
    "    sub sp, sp, #24\n"
    "    mov lr, r2\n"
    "    mov r12, r1\n"
    "    subs r1, r1, r0\n"
    "    adr r4, 2f\n"
    "    lsls r1, r1, #28\n"                    /* bit 3: an odd number of steps */
    "    beq 1f\n"
    "    adr r4, 3f\n"
    "1:  orr r4, r4, #1\n"
    "    strd r0, r4, [sp]\n"
    "    ldrd r4, r5, [sp, #60]\n"              /* last, out */
    "    ldr r6, [sp, #68]\n"                   /* relu */
    "    strd r4, r5, [sp, #12]\n"
    "    str r6, [sp, #20]\n"
    "    mov r11, r3\n"
    "1:  str r11, [sp, #8]\n"
    "    ldr r0, [r11]\n"
    "    ldr r1, [r11, #8]\n"
    "    ldr r2, [r11, #16]\n"
    "    ldr r3, [r11, #24]\n"
    "    ldr r10, [sp]\n"
    "    ldr pc, [sp, #4]\n"
    "    .balign 4\n"
    "2:  ecg_step\\bits\n"
    "    .balign 4\n"
    "3:  ecg_step\\bits\n"
    "    cmp r10, r12\n"
    "    bne 2b\n"
    "    ldr r11, [sp, #8]\n"
    "    ldr r6, [r11, #4]\n"
    "    ldr r7, [r11, #12]\n"
    "    ldr r8, [r11, #20]\n"
    "    ldr r9, [r11, #28]\n"
    "    smmulr r0, r0, r6\n"
    "    smmulr r1, r1, r7\n"
    "    smmulr r2, r2, r8\n"
    "    smmulr r3, r3, r9\n"
    "    ssat r0, #8, r0\n"
    "    ssat r1, #8, r1\n"
    "    ssat r2, #8, r2\n"
    "    ssat r3, #8, r3\n"
    "    bfi r0, r1, #8, #8\n"
    "    bfi r0, r2, #16, #8\n"
    "    bfi r0, r3, #24, #8\n"
    "    ldrd r4, r5, [sp, #16]\n"              /* out, relu: see ecg_relu4 */
    "    eors r0, r0, r5\n"
    "    uqsub8 r0, r0, r5\n"
    "    str r0, [r4], #4\n"
    "    str r4, [sp, #16]\n"
    "    ldr r4, [sp, #12]\n"
    "    add r11, r11, #32\n"
    "    cmp r11, r4\n"
    "    bne 1b\n"
    "    add sp, sp, #24\n"
    "    pop {r4-r11, pc}\n"
    "    .size \\name, . - \\name\n"
    "    .popsection\n"
    ".endm\n"
    "    ecg_dense4 ecg_dense4_dsp, 16\n"
    "    ecg_dense4 ecg_dense4_dsp8, 8\n");

#else

static void twin(const uint32_t *x, const uint32_t *end, const uint32_t *weight, int bits,
                 const ecg_scale *scale, const ecg_scale *last, int8_t *out, uint32_t relu)
{
    for (; scale != last; scale += 4, out += 4) {
        int32_t acc[4];
        uint32_t codes;

        for (int i = 0; i < 4; i++)
            acc[i] = scale[i].bias;
        for (const uint32_t *pair = x; pair != end; pair++)
            for (int i = 0; i < 4; i += 2, weight += bits / 8) {
                acc[i] = ecg_smlad(*pair, bits == 8 ? ecg_even(weight[0]) : weight[0], acc[i]);
                acc[i + 1] = ecg_smlad(*pair, bits == 8 ? ecg_odd(weight[0]) : weight[1], acc[i + 1]);
            }
        for (int i = 0; i < 4; i++)
            acc[i] = ecg_ssat8(ecg_mulhi(acc[i], scale[i].mul));
        codes = ecg_pack4(acc[0], acc[1], acc[2], acc[3]);
        ecg_store4(out, ecg_relu4(codes, relu));
    }
}

static void ecg_dense4_dsp(const uint32_t *x, const uint32_t *end, const void *weight, const ecg_scale *scale,
                           const ecg_scale *last, int8_t *out, uint32_t relu)
{
    twin(x, end, weight, 16, scale, last, out, relu);
}

static void ecg_dense4_dsp8(const uint32_t *x, const uint32_t *end, const void *weight,
                            const ecg_scale *scale, const ecg_scale *last, int8_t *out, uint32_t relu)
{
    twin(x, end, weight, 8, scale, last, out, relu);
}

#endif

/* words: of weights for four outputs and a pair of inputs */
static void dense(const ecg_dense_layer *l, const int8_t *in, int8_t *out, uint32_t *x, fours *multiply,
                  int32_t words)
{
    const uint32_t *weight = l->weight, relu = l->relu ? ECG_RELU : 0;
    const int32_t full = l->out & ~3;
    uint32_t *to = x;
    int32_t i;

    for (i = 0; i + 4 <= l->in; i += 4, to += 2) {
        uint32_t codes = ecg_load4(in + i);

        to[0] = ecg_even(codes);
        to[1] = ecg_odd(codes);
    }
    if (i < l->in) {
        uint32_t codes = 0;

        for (unsigned at = 0; i < l->in; i++, at += 8)
            codes |= (uint32_t)(uint8_t)in[i] << at;
        to[0] = ecg_even(codes);
        to[1] = ecg_odd(codes);
        to += 2;
    }
    if (full)
        multiply(x, to, weight, l->scale, l->scale + full, out, relu);
    if (full < l->out) {
        int8_t codes[4];

        weight += full / 4 * (to - x) * words;
        multiply(x, to, weight, l->scale + full, l->scale + full + 4, codes, relu);
        for (i = full; i < l->out; i++)
            out[i] = codes[i - full];
    }
}

/* layer: ecg_dense_layer, weights as above, scales of a multiple of four outputs; scratch as
 * targets/pack_conv.py has it. A channel's shift is in its weights and bias. */
void ecg_dense_dsp(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    dense(layer, in->data, out->data, scratch, ecg_dense4_dsp, 4);
}

void ecg_dense_dsp8(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    dense(layer, in->data, out->data, scratch, ecg_dense4_dsp8, 2);
}
