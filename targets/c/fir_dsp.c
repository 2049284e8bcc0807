/* SPDX-License-Identifier: Apache-2.0
 *
 * Depthwise convolution for Cortex-M4, M7 and M33: every row is filtered by itself, four columns at a time. A load of
 * four codes gives the pairs (0, 2) and (1, 3); weights lie alike, so two taps cost one multiplication. Columns that
 * see padding, or whose load would leave the row, work on a copy of their end of the row in scratch. */
#include "ecg_dsp.h"
#include "ecg_kernels.h"

enum { SHORT_ROW = 64 };        /* bytes up to which a row is copied as a whole: cheaper than its two ends */

typedef struct fir fir;

/* the filter of a row */
typedef struct {
    const uint32_t *weight;
    ecg_scale scale;
} filter;

/* `count` columns, at least 4, the first of which sees x; the last four may be computed twice, to the same codes */
typedef void filtering(const fir *f, const filter *h, const int8_t *x, int8_t *to, int32_t count);

/* What all rows have in common. */
struct fir {
    int32_t words, stride;      /* pairs of weights, two for four taps */
    int32_t columns;            /* of the input */
    int32_t count;              /* of the output */
    int32_t start;              /* input column that the first tap of the first output column meets, from the view's */
    int32_t head, tail;         /* output columns head .. tail - 1 need no copy */
    uint32_t relu;
    int8_t *copy;
    filtering *run;
};

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

static inline void store(int8_t *to, int32_t a, int32_t b, int32_t c, int32_t d, int32_t mul, uint32_t relu)
{
    ecg_store4(to, ecg_requantize4(a, b, c, d, mul, relu));
}

/* up to 4 taps, stride 1 */
static void taps4(const fir *f, const filter *h, const int8_t *x, int8_t *to, int32_t count)
{
    const uint32_t w0 = h->weight[0], w1 = h->weight[1], relu = f->relu;
    const int32_t bias = h->scale.bias, mul = h->scale.mul;

    int8_t *last = to + count - 4;

    do {
        uint32_t low = ecg_load4(x), mid = ecg_load4(x + 2), high = ecg_load4(x + 3);
        int32_t a = ecg_smlad(w1, ecg_odd(low), ecg_smlad(w0, ecg_even(low), bias));
        int32_t b = ecg_smlad(w1, ecg_even(mid), ecg_smlad(w0, ecg_odd(low), bias));
        int32_t c = ecg_smlad(w1, ecg_odd(mid), ecg_smlad(w0, ecg_even(mid), bias));
        int32_t d = ecg_smlad(w1, ecg_odd(high), ecg_smlad(w0, ecg_odd(mid), bias));

        store(to, a, b, c, d, mul, relu);
    } while (advance(&x, &to, last, 1));
}

/* up to 8 taps, stride 1 */
static void taps8(const fir *f, const filter *h, const int8_t *x, int8_t *to, int32_t count)
{
    const uint32_t w0 = h->weight[0], w1 = h->weight[1], w2 = h->weight[2], w3 = h->weight[3], relu = f->relu;
    const int32_t bias = h->scale.bias, mul = h->scale.mul;

    int8_t *last = to + count - 4;

    do {
        uint32_t codes = ecg_load4(x), even = ecg_even(codes), odd = ecg_odd(codes);
        int32_t a = ecg_smlad(w1, odd, ecg_smlad(w0, even, bias)), b = ecg_smlad(w0, odd, bias), c, d;

        codes = ecg_load4(x + 2), even = ecg_even(codes), odd = ecg_odd(codes);
        b = ecg_smlad(w1, even, b), c = ecg_smlad(w1, odd, ecg_smlad(w0, even, bias)), d = ecg_smlad(w0, odd, bias);
        codes = ecg_load4(x + 4), even = ecg_even(codes), odd = ecg_odd(codes);
        a = ecg_smlad(w3, odd, ecg_smlad(w2, even, a)), b = ecg_smlad(w2, odd, b), d = ecg_smlad(w1, even, d);
        codes = ecg_load4(x + 6), even = ecg_even(codes), odd = ecg_odd(codes);
        b = ecg_smlad(w3, even, b), c = ecg_smlad(w3, odd, ecg_smlad(w2, even, c)), d = ecg_smlad(w2, odd, d);
        d = ecg_smlad(w3, ecg_odd(ecg_load4(x + 7)), d);
        store(to, a, b, c, d, mul, relu);
    } while (advance(&x, &to, last, 1));
}

/* up to 8 taps, stride 2 */
static void taps8by2(const fir *f, const filter *h, const int8_t *x, int8_t *to, int32_t count)
{
    const uint32_t w0 = h->weight[0], w1 = h->weight[1], w2 = h->weight[2], w3 = h->weight[3], relu = f->relu;
    const int32_t bias = h->scale.bias, mul = h->scale.mul;

    int8_t *last = to + count - 4;

    do {
        uint32_t codes = ecg_load4(x), even = ecg_even(codes), odd = ecg_odd(codes);
        int32_t a = ecg_smlad(w1, odd, ecg_smlad(w0, even, bias)), b, c, d;

        codes = ecg_load4(x + 2), even = ecg_even(codes), odd = ecg_odd(codes);
        b = ecg_smlad(w1, odd, ecg_smlad(w0, even, bias));
        codes = ecg_load4(x + 4), even = ecg_even(codes), odd = ecg_odd(codes);
        a = ecg_smlad(w3, odd, ecg_smlad(w2, even, a)), c = ecg_smlad(w1, odd, ecg_smlad(w0, even, bias));
        codes = ecg_load4(x + 6), even = ecg_even(codes), odd = ecg_odd(codes);
        b = ecg_smlad(w3, odd, ecg_smlad(w2, even, b)), d = ecg_smlad(w1, odd, ecg_smlad(w0, even, bias));
        codes = ecg_load4(x + 8), even = ecg_even(codes), odd = ecg_odd(codes);
        c = ecg_smlad(w3, odd, ecg_smlad(w2, even, c));
        codes = ecg_load4(x + 10), even = ecg_even(codes), odd = ecg_odd(codes);
        d = ecg_smlad(w3, odd, ecg_smlad(w2, even, d));
        store(to, a, b, c, d, mul, relu);
    } while (advance(&x, &to, last, 2));
}

/* any number of taps, any stride */
static void taps(const fir *f, const filter *h, const int8_t *x, int8_t *to, int32_t count)
{
    const int32_t stride = f->stride;

    int8_t *last = to + count - 4;

    do {
        const uint32_t *w = h->weight, *last = w + f->words;
        const int8_t *at = x;
        int32_t a = h->scale.bias, b = a, c = a, d = a;

        for (; w != last; w += 2, at += 4) {
            uint32_t w0 = w[0], w1 = w[1], codes;

            codes = ecg_load4(at), a = ecg_smlad(w1, ecg_odd(codes), ecg_smlad(w0, ecg_even(codes), a));
            codes = ecg_load4(at + stride), b = ecg_smlad(w1, ecg_odd(codes), ecg_smlad(w0, ecg_even(codes), b));
            codes = ecg_load4(at + 2 * stride), c = ecg_smlad(w1, ecg_odd(codes), ecg_smlad(w0, ecg_even(codes), c));
            codes = ecg_load4(at + 3 * stride), d = ecg_smlad(w1, ecg_odd(codes), ecg_smlad(w0, ecg_even(codes), d));
        }
        store(to, a, b, c, d, h->scale.mul, f->relu);
    } while (advance(&x, &to, last, stride));
}

/* Columns t .. stop - 1 from a copy of what they see, zeros where there is padding. row: column 0 of the input. */
static void run_copy(const fir *f, const filter *h, const int8_t *row, int8_t *to, int32_t t, int32_t stop)
{
    const int32_t count = stop - t, whole = count < 4 ? 4 : count, from = f->start + t * f->stride;
    const int32_t bytes = (whole - 1) * f->stride + 2 * f->words;
    const int32_t low = ecg_clamp(-from, 0, bytes), high = ecg_clamp(f->columns - from, low, bytes);
    int32_t i;

    for (i = 0; i < low; i += 4)
        ecg_store4(f->copy + i, 0);
    for (i = high & ~3; i < bytes; i += 4)
        ecg_store4(f->copy + i, 0);
    row += from;
    for (i = low; i + 4 <= high; i += 4)
        ecg_store4(f->copy + i, ecg_load4(row + i));
    for (; i < high; i++)
        f->copy[i] = row[i];
    if (count < 4) {
        int8_t codes[4];

        f->run(f, h, f->copy, codes, 4);
        for (i = 0; i < count; i++)
            to[t + i] = codes[i];
    } else {
        f->run(f, h, f->copy, to + t, count);
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

/* conv1d with one channel in each group. weight: for each output channel int16 pairs of taps (0, 2), (1, 3), (4, 6),
 * ..., that hold the channel's shift; scratch as targets/pack_conv.py has it. */
void ecg_fir_dsp(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_conv_layer *l = layer;
    const int32_t share = l->out / l->groups;
    fir f = {2 * ((l->kernel + 3) / 4), l->stride, in->end - in->first, out->end - out->first,
             out->first * l->stride - l->pad - in->first, 0, 0, l->relu ? ECG_RELU : 0, scratch, taps};

    if (f.words == 2 && f.stride == 1)
        f.run = taps4;
    if (f.words == 4 && f.stride == 1)
        f.run = taps8;
    if (f.words == 4 && f.stride == 2)
        f.run = taps8by2;
    divide(&f);
    for (int32_t o = 0; o < l->out; o++) {
        const filter h = {(const uint32_t *)l->weight + o * f.words, l->scale[o]};

        for (int32_t lead = 0; lead < l->leads; lead++) {
            const int8_t *row = in->data + (o / share * l->leads + lead) * in->pitch;
            int8_t *to = out->data + (o * l->leads + lead) * out->pitch;

            if (f.head)
                run_copy(&f, &h, row, to, 0, f.head);
            if (f.tail > f.head)
                f.run(&f, &h, row + f.start + f.head * f.stride, to + f.head, f.tail - f.head);
            if (f.tail < f.count)
                run_copy(&f, &h, row, to, f.tail, f.count);
        }
    }
}
