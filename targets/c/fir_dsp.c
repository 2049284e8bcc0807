/* SPDX-License-Identifier: Apache-2.0
 *
 * Convolution with one input channel in each group, depthwise above all, for Cortex-M4, M7 and M33: every
 * row is filtered by itself, four columns at a time. A load of four codes gives the pairs (0, 2) and (1,
 * 3); weights lie alike, so two taps cost one multiplication. Columns that see padding, or whose load would
 * leave the row, work on a copy of their end of the row in scratch. */
#include "ecg_dsp.h"
#include "ecg_kernels.h"

enum { SHORT_ROW = 64 };        /* bytes up to which a row is copied as a whole: cheaper than its two ends */

/* Columns to .. last + 3, of which there are at least four, the first one from x on: `words` pairs of
 * weights, two for four taps. The last four may be computed twice, to the same codes. */
typedef void filter(const uint32_t *weight, const ecg_scale *scale, const int8_t *x, int8_t *to, int8_t *last,
                    uint32_t relu, int32_t stride, int32_t words);

/* To the next four columns, or back to the last four where fewer are left; 0 at the end. */
static inline int advance(const int8_t **x, int8_t **to, int8_t *last, int32_t stride)
{
    *to += 4;
    *x += 4 * stride;
    if (*to > last) {
        if (*to == last + 4)
            return 0;
        *x -= (*to - last) * stride;
        *to = last;
    }
    return 1;
}

/* up to 4 taps, stride 1 */
static void filter4(const uint32_t *weight, const ecg_scale *scale, const int8_t *x, int8_t *to, int8_t *last,
                    uint32_t relu, int32_t stride, int32_t words)
{
    const uint32_t w0 = weight[0], w1 = weight[1];
    const int32_t bias = scale->bias, mul = scale->mul;

    (void)words;
    (void)stride;
    do {
        const uint32_t low = ecg_load4(x), mid = ecg_load4(x + 2), high = ecg_load4(x + 3);
        const int32_t a = ecg_smlad(w1, ecg_odd(low), ecg_smlad(w0, ecg_even(low), bias));
        const int32_t b = ecg_smlad(w1, ecg_even(mid), ecg_smlad(w0, ecg_odd(low), bias));
        const int32_t c = ecg_smlad(w1, ecg_odd(mid), ecg_smlad(w0, ecg_even(mid), bias));
        const int32_t d = ecg_smlad(w1, ecg_odd(high), ecg_smlad(w0, ecg_odd(mid), bias));

        ecg_store4(to, ecg_requantize4(a, b, c, d, mul, relu));
    } while (advance(&x, &to, last, 1));
}

#if ECG_THUMB_DSP

/* up to 8 taps with stride 1, with stride 2; any number of taps with any stride */
filter ecg_filter8_dsp, ecg_filter8by2_dsp, ecg_filter_dsp;

/* The first two: r0: x. r1: to. r2-r5: sums. r6, r7: pairs of codes. r8-r11: weights. r12: bias. lr: mul.
 * The third: r0-r3: sums. r4, r5: pairs of codes. r6, r7: weights. r8: x. r9-r11: stride, twice and three
 * times that. r12: weight. lr: its end. The stack, from sp on: weight, x, to, scale. */
__asm__(
    ".syntax unified\n"
    ".macro ecg_function name\n"
    "    .pushsection .text.\\name, \"ax\", %progbits\n"
    "    .balign 4\n"
    "    .thumb\n"
    "    .thumb_func\n"
    "    .global \\name\n"
    "    .type \\name, %function\n"
    "\\name:\n"
    "    push {r4-r11, lr}\n"
    ".endm\n"
    ".macro ecg_pairs even, odd\n"             /* of the codes in `even` */
    "    sxtb16 \\odd, \\even, ror #8\n"
    "    sxtb16 \\even, \\even\n"
    ".endm\n"
    ".macro ecg_two sum, w0, even, w1, odd, from\n"
    "    smlad \\sum, \\w0, \\even, \\from\n"
    "    smlad \\sum, \\w1, \\odd, \\sum\n"
    ".endm\n"
    ".macro ecg_codes a, b, c, d, mul, mask, relu\n"   /* requantized, in a; see ecg_requantize4 */
    "    smmulr \\a, \\a, \\mul\n"
    "    smmulr \\b, \\b, \\mul\n"
    "    smmulr \\c, \\c, \\mul\n"
    "    smmulr \\d, \\d, \\mul\n"
    "    ssat \\a, #8, \\a\n"
    "    ssat \\b, #8, \\b\n"
    "    ssat \\c, #8, \\c\n"
    "    ssat \\d, #8, \\d\n"
    "    ldr \\mask, [sp, #\\relu]\n"
    "    bfi \\a, \\b, #8, #8\n"
    "    bfi \\a, \\c, #16, #8\n"
    "    bfi \\a, \\d, #24, #8\n"
    "    eors \\a, \\a, \\mask\n"
    "    uqsub8 \\a, \\a, \\mask\n"
    ".endm\n"
    ".macro ecg_begin8\n"
    "    ldrd r12, lr, [r1]\n"
    "    ldm r0, {r8-r11}\n"
    "    mov r0, r2\n"
    "    mov r1, r3\n"
    ".endm\n"
    ".macro ecg_end8 shift, name\n"            /* shift: 2^shift is the stride */
    "    ecg_codes r2, r3, r4, r5, lr, r6, 40\n"
    "    str r2, [r1], #4\n"
    "    ldr r6, [sp, #36]\n"                  /* last */
    "    cmp r1, r6\n"
    "    bls 1b\n"
    "    subs r7, r1, r6\n"
    "    cmp r7, #4\n"
    "    beq 2f\n"
    "    sub r0, r0, r7, lsl #\\shift\n"
    "    mov r1, r6\n"
    "    b 1b\n"
    "2:  pop {r4-r11, pc}\n"
    "    .size \\name, . - \\name\n"
    "    .popsection\n"
    ".endm\n"

    "    ecg_function ecg_filter8_dsp\n"
    "    ecg_begin8\n"
    "1:  ldr r6, [r0], #4\n"
    "    ecg_pairs r6, r7\n"
    "    ecg_two r2, r8, r6, r9, r7, r12\n"
    "    smlad r3, r8, r7, r12\n"
    "    ldr r6, [r0, #-2]\n"
    "    ecg_pairs r6, r7\n"
    "    smlad r3, r9, r6, r3\n"
    "    ecg_two r4, r8, r6, r9, r7, r12\n"
    "    smlad r5, r8, r7, r12\n"
    "    ldr r6, [r0]\n"
    "    ecg_pairs r6, r7\n"
    "    ecg_two r2, r10, r6, r11, r7, r2\n"
    "    smlad r3, r10, r7, r3\n"
    "    smlad r5, r9, r6, r5\n"
    "    ldr r6, [r0, #2]\n"
    "    ecg_pairs r6, r7\n"
    "    smlad r3, r11, r6, r3\n"
    "    ecg_two r4, r10, r6, r11, r7, r4\n"
    "    smlad r5, r10, r7, r5\n"
    "    ldr r6, [r0, #3]\n"
    "    sxtb16 r6, r6, ror #8\n"
    "    smlad r5, r11, r6, r5\n"
    "    ecg_end8 0, ecg_filter8_dsp\n"

    "    ecg_function ecg_filter8by2_dsp\n"
    "    ecg_begin8\n"
    "1:  ldr r6, [r0], #8\n"
    "    ecg_pairs r6, r7\n"
    "    ecg_two r2, r8, r6, r9, r7, r12\n"
    "    ldr r6, [r0, #-6]\n"
    "    ecg_pairs r6, r7\n"
    "    ecg_two r3, r8, r6, r9, r7, r12\n"
    "    ldr r6, [r0, #-4]\n"
    "    ecg_pairs r6, r7\n"
    "    ecg_two r2, r10, r6, r11, r7, r2\n"
    "    ecg_two r4, r8, r6, r9, r7, r12\n"
    "    ldr r6, [r0, #-2]\n"
    "    ecg_pairs r6, r7\n"
    "    ecg_two r3, r10, r6, r11, r7, r3\n"
    "    ecg_two r5, r8, r6, r9, r7, r12\n"
    "    ldr r6, [r0]\n"
    "    ecg_pairs r6, r7\n"
    "    ecg_two r4, r10, r6, r11, r7, r4\n"
    "    ldr r6, [r0, #2]\n"
    "    ecg_pairs r6, r7\n"
    "    ecg_two r5, r10, r6, r11, r7, r5\n"
    "    ecg_end8 1, ecg_filter8by2_dsp\n"

    "    ecg_function ecg_filter_dsp\n"
    "    sub sp, sp, #16\n"
    "    strd r3, r1, [sp, #8]\n"
    "    str r0, [sp]\n"
    "    mov r4, r2\n"
    "    mov r5, r3\n"
    "    ldrd r9, lr, [sp, #60]\n"             /* stride, words */
    "    lsl r10, r9, #1\n"
    "    add r11, r10, r9\n"
    "    add lr, r0, lr, lsl #2\n"
    "1:  strd r4, r5, [sp, #4]\n"
    "    ldr r0, [sp, #12]\n"
    "    ldrd r12, r8, [sp]\n"
    "    ldr r0, [r0]\n"
    "    mov r1, r0\n"
    "    mov r2, r0\n"
    "    mov r3, r0\n"
    "2:  ldrd r6, r7, [r12], #8\n"
    "    ldr r4, [r8, r9]\n"
    "    ecg_pairs r4, r5\n"
    "    ecg_two r1, r6, r4, r7, r5, r1\n"
    "    ldr r4, [r8, r10]\n"
    "    ecg_pairs r4, r5\n"
    "    ecg_two r2, r6, r4, r7, r5, r2\n"
    "    ldr r4, [r8, r11]\n"
    "    ecg_pairs r4, r5\n"
    "    ecg_two r3, r6, r4, r7, r5, r3\n"
    "    ldr r4, [r8], #4\n"
    "    ecg_pairs r4, r5\n"
    "    ecg_two r0, r6, r4, r7, r5, r0\n"
    "    cmp r12, lr\n"
    "    bne 2b\n"
    "    ldr r4, [sp, #12]\n"
    "    ldr r4, [r4, #4]\n"
    "    ecg_codes r0, r1, r2, r3, r4, r5, 56\n"
    "    ldrd r4, r5, [sp, #4]\n"
    "    ldr r6, [sp, #52]\n"                  /* last */
    "    str r0, [r5], #4\n"
    "    add r4, r4, r9, lsl #2\n"
    "    cmp r5, r6\n"
    "    bls 1b\n"
    "    subs r7, r5, r6\n"
    "    cmp r7, #4\n"
    "    beq 3f\n"
    "    mls r4, r7, r9, r4\n"
    "    mov r5, r6\n"
    "    b 1b\n"
    "3:  add sp, sp, #16\n"
    "    pop {r4-r11, pc}\n"
    "    .size ecg_filter_dsp, . - ecg_filter_dsp\n"
    "    .popsection\n");

#else

static void ecg_filter_dsp(const uint32_t *weight, const ecg_scale *scale, const int8_t *x, int8_t *to,
                           int8_t *last, uint32_t relu, int32_t stride, int32_t words)
{
    do {
        int32_t acc[4] = {scale->bias, scale->bias, scale->bias, scale->bias};

        for (int i = 0; i < 4; i++)
            for (int32_t w = 0; w < words; w += 2) {
                const uint32_t codes = ecg_load4(x + i * stride + 2 * w);

                acc[i] = ecg_smlad(weight[w], ecg_even(codes), acc[i]);
                acc[i] = ecg_smlad(weight[w + 1], ecg_odd(codes), acc[i]);
            }
        ecg_store4(to, ecg_requantize4(acc[0], acc[1], acc[2], acc[3], scale->mul, relu));
    } while (advance(&x, &to, last, stride));
}

#define ecg_filter8_dsp ecg_filter_dsp
#define ecg_filter8by2_dsp ecg_filter_dsp

#endif

/* What all rows have in common. */
typedef struct {
    filter *run;
    int32_t words, stride;      /* pairs of weights */
    int32_t columns;            /* of the input */
    int32_t count;              /* of the output */
    int32_t start;              /* what the first tap of the first output column meets: column of the view */
    int32_t head, tail;         /* output columns head .. tail - 1 need no copy */
    uint32_t relu;
    int8_t *copy;
} fir;

static void run(const fir *f, const uint32_t *weight, const ecg_scale *scale, const int8_t *x, int8_t *to,
                int32_t count)
{
    f->run(weight, scale, x, to, to + count - 4, f->relu, f->stride, f->words);
}

/* Columns t .. stop - 1 from a copy of what they see, zeros where there is padding. row: column 0 of the
 * input. */
static void run_copy(const fir *f, const uint32_t *weight, const ecg_scale *scale, const int8_t *row,
                     int8_t *to, int32_t t, int32_t stop)
{
    const int32_t count = stop - t, whole = count < 4 ? 4 : count, from = f->start + t * f->stride;
    const int32_t bytes = (whole - 1) * f->stride + 2 * f->words;
    const int32_t low = ecg_clamp(-from, 0, bytes), high = ecg_clamp(f->columns - from, low, bytes);
    int32_t i;

    for (i = 0; i < low; i += 4)
        ecg_store4(f->copy + i, 0);
    for (i = high & ~3; i < bytes; i += 4)
        ecg_store4(f->copy + i, 0);
    for (i = low; i + 4 <= high; i += 4)
        ecg_store4(f->copy + i, ecg_load4(row + (from + i)));
    for (; i < high; i++)
        f->copy[i] = row[from + i];
    if (count < 4) {
        int8_t codes[4];

        run(f, weight, scale, f->copy, codes, 4);
        for (i = 0; i < count; i++)
            to[t + i] = codes[i];
    } else {
        run(f, weight, scale, f->copy, to + t, count);
    }
}

/* Sets head and tail: 0 and 0 when the row is copied as a whole. */
static void divide(fir *f)
{
    const int32_t reach = 2 * f->words, bytes = (f->count - 1) * f->stride + reach;
    const int32_t before = f->start < 0 ? (-f->start + f->stride - 1) / f->stride : 0;
    const int32_t room = f->columns - reach - f->start;         /* for steps of the first column */
    const int32_t inside = room < 0 ? 0 : room / f->stride + 1;

    f->head = before && before < 4 ? 4 : before;
    f->tail = inside >= f->count ? f->count : inside < f->count - 4 ? inside : f->count - 4;
    if (bytes <= SHORT_ROW || f->tail - f->head < 4)
        f->head = f->tail = 0;
}

/* conv1d with one channel in each group. weight: for each output channel int16 pairs of taps (0, 2), (1,
 * 3), (4, 6), ..., that hold the channel's shift; scratch as targets/pack_conv.py has it. */
void ecg_fir_dsp(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_conv_layer *l = layer;
    const int32_t share = l->out / l->groups;
    fir f = {ecg_filter_dsp, (l->kernel + 3) / 4 * 2, l->stride, in->end - in->first, out->end - out->first,
             out->first * l->stride - l->pad - in->first, 0, 0, l->relu ? ECG_RELU : 0, scratch};

    if (f.words == 2 && f.stride == 1)
        f.run = filter4;
    if (f.words == 4 && f.stride == 1)
        f.run = ecg_filter8_dsp;
    if (f.words == 4 && f.stride == 2)
        f.run = ecg_filter8by2_dsp;
    divide(&f);
    for (int32_t o = 0; o < l->out; o++) {
        const uint32_t *weight = (const uint32_t *)l->weight + o * f.words;
        const ecg_scale *scale = l->scale + o;

        for (int32_t lead = 0; lead < l->leads; lead++) {
            const int8_t *row = in->data + (o / share * l->leads + lead) * in->pitch;
            int8_t *to = out->data + (o * l->leads + lead) * out->pitch;

            if (f.head)
                run_copy(&f, weight, scale, row, to, 0, f.head);
            if (f.tail > f.head)
                run(&f, weight, scale, row + f.start + f.head * f.stride, to + f.head, f.tail - f.head);
            if (f.tail < f.count)
                run_copy(&f, weight, scale, row, to, f.tail, f.count);
        }
    }
}
