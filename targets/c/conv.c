/* SPDX-License-Identifier: Apache-2.0 */
#include "ecg_fixed.h"
#include "ecg_kernels.h"

/* Columns that are summed side by side: as many as a vector host, or the registers of a microcontroller,
 * can hold. */
#if defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
enum { COLUMNS = 4 };
#else
enum { COLUMNS = 16 };
#endif

/* What one output row needs: the first input channel of its group, `rows` bytes to the next one. */
typedef struct {
    const int8_t *in, *weight;
    int32_t rows, depth, kernel, stride, low;
    ecg_scale scale;
    unsigned shift;
} conv_row;

/* One column: the taps first .. stop - 1 of every channel meet the input at x, the others meet padding. */
static int8_t column(const conv_row *r, const int8_t *x, int32_t first, int32_t stop)
{
    const int8_t *weight = r->weight;
    int32_t acc = r->scale.bias;

    for (int32_t c = 0; c < r->depth; c++, weight += r->kernel, x += r->rows)
        for (int32_t k = first; k < stop; k++)
            acc += weight[k] * x[k - first];
    return ecg_requantize(acc, r->scale.mul, r->shift, r->low);
}

/* COLUMNS columns away from the edges; `stride` is a constant where this is inlined */
static inline void columns(const conv_row *r, const int8_t *x, int8_t *out, int32_t stride)
{
    const int8_t *weight = r->weight;
    int32_t acc[COLUMNS];

    for (int32_t j = 0; j < COLUMNS; j++)
        acc[j] = r->scale.bias;
    for (int32_t c = 0; c < r->depth; c++, x += r->rows)
        for (int32_t k = 0; k < r->kernel; k++) {
            int32_t w = *weight++;

            for (int32_t j = 0; j < COLUMNS; j++)
                acc[j] += w * x[k + j * stride];
        }
    for (int32_t j = 0; j < COLUMNS; j++)
        out[j] = ecg_requantize(acc[j], r->scale.mul, r->shift, r->low);
}

/* Columns t .. stop - 1 of a row, none of which sees padding. x: what column t sees of the first channel. */
static void inside(const conv_row *r, const int8_t *x, int8_t *out, int32_t count)
{
    for (int32_t t = 0; t < count; t += COLUMNS) {
        if (count - t < COLUMNS)
            t = count - COLUMNS;        /* some columns are computed again, to the same values */
        if (r->stride == 1)
            columns(r, x + t, out + t, 1);
        else if (r->stride == 2)
            columns(r, x + 2 * t, out + t, 2);
        else
            columns(r, x + t * r->stride, out + t, r->stride);
    }
}

/* A whole output row. `in` and `out` tell the columns. */
static void row(const conv_row *r, int32_t pad, const ecg_view *in, const ecg_view *out, int8_t *to)
{
    for (int32_t t = out->first; t < out->end;) {
        int32_t start = t * r->stride - pad;            /* the input column that the first tap meets */
        int32_t whole = start < in->first ? 0 : (in->end - r->kernel - start + r->stride) / r->stride;

        if (whole > out->end - t)
            whole = out->end - t;
        if (whole >= COLUMNS) {
            inside(r, r->in + (start - in->first), to + (t - out->first), whole);
            t += whole;
        } else {
            int32_t first = start < in->first ? ecg_clamp(in->first - start, 0, r->kernel) : 0;
            int32_t stop = ecg_clamp(in->end - start, first, r->kernel);
            const int8_t *x = first < stop ? r->in + (start + first - in->first) : r->in;

            to[t - out->first] = column(r, x, first, stop);
            t++;
        }
    }
}

/* conv1d in plain C: the definition. layer: ecg_conv_layer, weight: int8 (out, in / groups, kernel). No
 * scratch. */
void ecg_conv(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_conv_layer *l = layer;
    int32_t depth = l->in / l->groups, share = l->out / l->groups;
    int32_t weights = depth * l->kernel;

    (void)scratch;
    for (int32_t o = 0; o < l->out; o++)
        for (int32_t lead = 0; lead < l->leads; lead++) {
            conv_row r = {in->data + (o / share * depth * l->leads + lead) * in->pitch,
                          (const int8_t *)l->weight + o * weights,
                          in->pitch * l->leads, depth, l->kernel, l->stride, l->relu ? 0 : -128,
                          l->scale[o], l->shift ? l->shift[o] : 0};

            row(&r, l->pad, in, out, out->data + (o * l->leads + lead) * out->pitch);
        }
}
