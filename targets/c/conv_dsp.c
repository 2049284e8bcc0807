/* SPDX-License-Identifier: Apache-2.0
 *
 * Convolution over channels for Cortex-M4, M7 and M33. Four columns at a time: what they see is expanded
 * once into scratch, as pairs of int16 in the order of the weights, and meets all output channels there,
 * two at a time. The eight sums stay in registers, and the four codes of a channel are stored as one word. */
#include "ecg_dsp.h"
#include "ecg_kernels.h"

/* A product of matrices: the output channels scale .. last - 1, an even number of them, for four columns. */
typedef struct {
    const ecg_scale *scale, *last;
    int32_t pitch;              /* bytes from a channel's row to the next one's; 0: the first of two stays */
    const uint32_t *weight;     /* each step: pairs of either channel, or the bytes (a0, b0, a1, b1) */
    const uint32_t *x, *end;    /* steps of four pairs, one for each column */
    uint32_t enter;             /* see ENTER */
    uint32_t relu;
} product;

typedef void multiply(const product *p, int8_t *out);

/* The loop over the steps is unrolled eight times. The first step is apart, and those that are left over
 * from eight are taken by jumping into the loop, `bytes` of code for each step; bit 0 is Thumb's. */
#define ENTER(steps, bytes) ((uint32_t)(((steps) > 1 ? (1 - (steps)) & 7 : 8) * (bytes)) | 1)

#if ECG_THUMB_DSP

multiply ecg_gemm_dsp, ecg_gemm_dsp8;

/* r0-r3, r4-r7: sums of the two channels. r8, r9: pairs of two columns. r10, r11: weights. r12: x. lr:
 * weights. The stack, from sp on: scale, last, pitch, out, mul, mul, x, end, where to enter the loop, how
 * to saturate. */
__asm__(
    ".syntax unified\n"
    ".macro ecg_weights16\n"
    "    ldrd r10, r11, [lr], #8\n"
    ".endm\n"
    ".macro ecg_weights8\n"
    "    ldr r11, [lr], #4\n"
    "    sxtb16 r10, r11\n"
    "    sxtb16 r11, r11, ror #8\n"
    ".endm\n"
    ".macro ecg_gemm name, bits\n"
    "    .pushsection .text.\\name, \"ax\", %progbits\n"
    "    .balign 4\n"
    "    .thumb\n"
    "    .thumb_func\n"
    "    .global \\name\n"
    "    .type \\name, %function\n"
    "\\name:\n"
    "    push {r4-r11, lr}\n"
    "    sub sp, sp, #40\n"
    "    ldm r0, {r2-r9}\n"
    "    mov r0, r4\n"
    "    strd r2, r3, [sp]\n"
    "    strd r0, r1, [sp, #8]\n"
    "    mov lr, r5\n"
    "    strd r6, r7, [sp, #24]\n"
    "    adr r0, 2f\n"
    "    add r0, r0, r8\n"
    "    adr r1, 4f\n"
    "    cmp r9, #0\n"
    "    beq 1f\n"
    "    adr r1, 5f\n"
    "1:  orr r1, r1, #1\n"
    "    strd r0, r1, [sp, #32]\n"
    "    mov r8, r2\n"
    "1:  ldm r8!, {r0, r1, r4, r5}\n"           /* bias, mul, bias, mul */
    "    ldr r12, [sp, #24]\n"
    "    str r8, [sp]\n"
    "    strd r1, r5, [sp, #16]\n"
    "    ecg_weights\\bits\n"
    "    ldrd r8, r9, [r12, #8]\n"
    "    smlad r2, r8, r10, r0\n"
    "    smlad r3, r9, r10, r0\n"
    "    smlad r6, r8, r11, r4\n"
    "    smlad r7, r9, r11, r4\n"
    "    ldrd r8, r9, [r12], #16\n"
    "    smlad r1, r9, r10, r0\n"
    "    smlad r0, r8, r10, r0\n"
    "    smlad r5, r9, r11, r4\n"
    "    smlad r4, r8, r11, r4\n"
    "    ldr pc, [sp, #32]\n"
    "    .balign 4\n"
    "2:  .rept 8\n"
    "    ecg_weights\\bits\n"
    "    ldrd r8, r9, [r12], #8\n"
    "    smlad r0, r8, r10, r0\n"
    "    smlad r1, r9, r10, r1\n"
    "    smlad r4, r8, r11, r4\n"
    "    smlad r5, r9, r11, r5\n"
    "    ldrd r8, r9, [r12], #8\n"
    "    smlad r2, r8, r10, r2\n"
    "    smlad r3, r9, r10, r3\n"
    "    smlad r6, r8, r11, r6\n"
    "    smlad r7, r9, r11, r7\n"
    "    .endr\n"
    "    ldr r8, [sp, #28]\n"
    "    cmp r12, r8\n"
    "    bne 2b\n"
    "    ldrd r8, r9, [sp, #16]\n"
    "    smmulr r0, r0, r8\n"
    "    smmulr r1, r1, r8\n"
    "    smmulr r2, r2, r8\n"
    "    smmulr r3, r3, r8\n"
    "    smmulr r4, r4, r9\n"
    "    smmulr r5, r5, r9\n"
    "    smmulr r6, r6, r9\n"
    "    smmulr r7, r7, r9\n"
    "    ldr pc, [sp, #36]\n"
    "    .balign 4\n"
    "4:  ssat r0, #8, r0\n"
    "    ssat r1, #8, r1\n"
    "    ssat r2, #8, r2\n"
    "    ssat r3, #8, r3\n"
    "    ssat r4, #8, r4\n"
    "    ssat r5, #8, r5\n"
    "    ssat r6, #8, r6\n"
    "    ssat r7, #8, r7\n"
    "    b 6f\n"
    "    .balign 4\n"
    "5:  usat r0, #7, r0\n"
    "    usat r1, #7, r1\n"
    "    usat r2, #7, r2\n"
    "    usat r3, #7, r3\n"
    "    usat r4, #7, r4\n"
    "    usat r5, #7, r5\n"
    "    usat r6, #7, r6\n"
    "    usat r7, #7, r7\n"
    "6:  bfi r0, r1, #8, #8\n"
    "    bfi r0, r2, #16, #8\n"
    "    bfi r0, r3, #24, #8\n"
    "    bfi r4, r5, #8, #8\n"
    "    bfi r4, r6, #16, #8\n"
    "    bfi r4, r7, #24, #8\n"
    "    ldrd r8, r12, [sp, #8]\n"
    "    str r4, [r12, r8]\n"
    "    str r0, [r12]\n"
    "    add r12, r12, r8, lsl #1\n"
    "    str r12, [sp, #12]\n"
    "    ldrd r8, r9, [sp]\n"
    "    cmp r8, r9\n"
    "    bne 1b\n"
    "    add sp, sp, #40\n"
    "    pop {r4-r11, pc}\n"
    "    .size \\name, . - \\name\n"
    "    .popsection\n"
    ".endm\n"
    "    ecg_gemm ecg_gemm_dsp, 16\n"
    "    ecg_gemm ecg_gemm_dsp8, 8\n");

#else

static void twin(const product *p, int8_t *out, int bits)
{
    const uint32_t *weight = p->weight, relu = p->relu ? ECG_RELU : 0;

    for (const ecg_scale *scale = p->scale; scale != p->last; scale += 2, out += 2 * p->pitch) {
        int32_t acc[8];

        for (int i = 0; i < 8; i++)
            acc[i] = scale[i / 4].bias;
        for (const uint32_t *step = p->x; step != p->end; step += 4, weight += bits / 8) {
            const uint32_t a = bits == 8 ? ecg_even(weight[0]) : weight[0];
            const uint32_t b = bits == 8 ? ecg_odd(weight[0]) : weight[1];

            for (int i = 0; i < 4; i++) {
                acc[i] = ecg_smlad(step[i], a, acc[i]);
                acc[4 + i] = ecg_smlad(step[i], b, acc[4 + i]);
            }
        }
        ecg_store4(out + p->pitch, ecg_requantize4(acc[4], acc[5], acc[6], acc[7], scale[1].mul, relu));
        ecg_store4(out, ecg_requantize4(acc[0], acc[1], acc[2], acc[3], scale[0].mul, relu));
    }
}

static void ecg_gemm_dsp(const product *p, int8_t *out)
{
    twin(p, out, 16);
}

static void ecg_gemm_dsp8(const product *p, int8_t *out)
{
    twin(p, out, 8);
}

#endif

/* Not inlined: each of these loops needs all registers for itself. */
#define APART static __attribute__((noinline))

/* What four columns see of one lead of a group. */
typedef struct {
    int32_t rows;               /* bytes from a channel to the next */
    int32_t columns;            /* of the input */
    int32_t depth, kernel, stride;
} field;

/* Codes of the columns at, at + step, ... of a row, padding outside of it. */
APART uint32_t gather(const int8_t *row, int32_t columns, int32_t at, int32_t step)
{
    uint32_t codes = 0;

    for (unsigned i = 0; i < 32; i += 8, at += step)
        if ((uint32_t)at < (uint32_t)columns)
            codes |= (uint32_t)(uint8_t)row[at] << i;
    return codes;
}

/* four pairs in order; returns where the next ones go */
static inline uint32_t *put4(uint32_t *to, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
#if ECG_THUMB_DSP
    __asm__ volatile("strd %1, %2, [%0], #8\n\tstrd %3, %4, [%0], #8"
                     : "+r"(to) : "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
    return to;
#else
    to[0] = a;
    to[1] = b;
    to[2] = c;
    to[3] = d;
    return to + 4;
#endif
}

/* a step of two channels from four columns of either */
static inline uint32_t *put_step(uint32_t *to, uint32_t a, uint32_t b)
{
    const uint32_t a02 = ecg_even(a), a13 = ecg_odd(a), b02 = ecg_even(b), b13 = ecg_odd(b);

    return put4(to, ecg_firsts(a02, b02), ecg_firsts(a13, b13), ecg_seconds(a02, b02), ecg_seconds(a13, b13));
}

/* A step is a pair of channels under one tap. Of an odd depth the last channel stands with itself, the
 * weight is 0. */
APART void expand_channels(const field *f, const int8_t *row, int32_t at, uint32_t *to)
{
    const int32_t rows = f->rows, s = f->stride;

    for (int32_t tap = 0; tap < f->kernel; tap++, at++) {
        const int inside = at >= 0 && at + 3 * s < f->columns;
        const int8_t *a = inside ? row + at : row, *last = a + (f->depth - 1) * rows;

        if (inside && s == 1)
            for (; a < last; a += 2 * rows)
                to = put_step(to, ecg_load4(a), ecg_load4(a + rows));
        else if (inside)
            for (const int8_t *b = a + rows; a < last; a += 2 * rows, b += 2 * rows)
                to = put4(to, ecg_firsts((uint32_t)a[0], (uint32_t)b[0]),
                          ecg_firsts((uint32_t)a[s], (uint32_t)b[s]),
                          ecg_firsts((uint32_t)a[2 * s], (uint32_t)b[2 * s]),
                          ecg_firsts((uint32_t)a[3 * s], (uint32_t)b[3 * s]));
        else
            for (; a < last; a += 2 * rows)
                to = put_step(to, gather(a, f->columns, at, s), gather(a + rows, f->columns, at, s));
        if (a == last) {
            const uint32_t codes = gather(row + (f->depth - 1) * rows, f->columns, at, s);

            to = put_step(to, codes, codes);
        }
    }
}

/* Two steps are four taps of one channel, (0, 2) and (1, 3). A last step that is all padding has no
 * weights. */
APART void expand_taps(const field *f, const int8_t *row, int32_t at, uint32_t *to)
{
    const int32_t s = f->stride;
    const int inside = at >= 0 && at + 3 * s + ((f->kernel + 3) & ~3) <= f->columns;

    for (int32_t c = 0; c < f->depth; c++, row += f->rows) {
        const int8_t *x = inside ? row + at : row;

        for (int32_t tap = 0; tap < f->kernel; tap += 4, x += 4) {
            uint32_t p, q, r, t;

            if (inside) {
                p = ecg_load4(x);
                q = ecg_load4(x + s);
                r = ecg_load4(x + 2 * s);
                t = ecg_load4(x + 3 * s);
            } else {
                p = gather(row, f->columns, at + tap, 1);
                q = gather(row, f->columns, at + tap + s, 1);
                r = gather(row, f->columns, at + tap + 2 * s, 1);
                t = gather(row, f->columns, at + tap + 3 * s, 1);
            }
            to = put4(to, ecg_even(p), ecg_even(q), ecg_even(r), ecg_even(t));
            to = put4(to, ecg_odd(p), ecg_odd(q), ecg_odd(r), ecg_odd(t));
        }
        if ((f->kernel & 3) == 1)
            to -= 4;
    }
}

/* what the two kernels differ in: words of weights and bytes of code for each step */
typedef struct {
    multiply *run;
    int32_t words, bytes;
} form;

/* Fewer columns than four: two channels at a time, by way of a copy. */
APART void few(product p, const form *by, int32_t share, int8_t *to, int32_t pitch, int32_t count)
{
    const int32_t weights = (int32_t)(p.end - p.x) / 4 * by->words;

    p.pitch = 4;
    for (int32_t o = 0; o < share; o += 2, p.scale += 2, p.weight += weights) {
        int8_t codes[8];

        p.last = p.scale + 2;
        by->run(&p, codes);
        for (int32_t i = 0; i < count; i++) {
            to[o * pitch + i] = codes[i];
            if (o + 1 < share)
                to[(o + 1) * pitch + i] = codes[4 + i];
        }
    }
}

static void conv(const ecg_conv_layer *l, const ecg_view *in, const ecg_view *out, uint32_t *x,
                 const form *by)
{
    const int32_t depth = l->in / l->groups, share = l->out / l->groups, even = share & ~1;
    const field f = {l->leads * in->pitch, in->end - in->first, depth, l->kernel, l->stride};
    const int32_t taps = depth * ((f.kernel + 3) / 4 + (f.kernel + 2) / 4);
    const int32_t channels = (depth + 1) / 2 * f.kernel;
    const int32_t steps = taps < channels ? taps : channels, count = out->end - out->first;
    const int32_t pitch = l->leads * out->pitch, start = out->first * f.stride - l->pad - in->first;
    const uint32_t *weight = l->weight;
    const ecg_scale *scale = l->scale;

    for (int32_t group = 0; group < l->groups; group++, scale += share) {
        const uint32_t *odd = weight + even / 2 * steps * by->words;
        const uint32_t enter = ENTER(steps, by->bytes);
        const product p = {scale, scale + even, pitch, weight, x, x + 4 * steps, enter, l->relu};
        const product last = {scale + even, scale + even + 2, 0, odd, x, x + 4 * steps, enter, l->relu};

        weight += (share + 1) / 2 * steps * by->words;
        for (int32_t lead = 0; lead < l->leads; lead++) {
            const int8_t *row = in->data + (group * depth * l->leads + lead) * in->pitch;
            int8_t *to = out->data + (group * share * l->leads + lead) * out->pitch;

            for (int32_t t = 0; t < count; t += 4) {
                if (t > count - 4 && count >= 4)
                    t = count - 4;          /* some columns are computed again, to the same codes */
                if (taps < channels)
                    expand_taps(&f, row, start + t * f.stride, x);
                else
                    expand_channels(&f, row, start + t * f.stride, x);
                if (count < 4) {
                    few(p, by, share, to, pitch, count);
                    continue;
                }
                if (even)
                    by->run(&p, to + t);
                if (even < share)
                    by->run(&last, to + even * pitch + t);
            }
        }
    }
}

/* layer: ecg_conv_layer. weight: for each group, each two channels of it and each step as above, in the
 * order of the expansion that has fewer steps, by channels if both have as many; a channel's shift is in
 * its weights and bias. Scales: one more than channels where a group has an odd number of them. Scratch as
 * targets/pack_conv.py has it. */
void ecg_conv_dsp(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    static const form by = {ecg_gemm_dsp, 2, 44};

    conv(layer, in, out, scratch, &by);
}

void ecg_conv_dsp8(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    static const form by = {ecg_gemm_dsp8, 1, 52};

    conv(layer, in, out, scratch, &by);
}
