/* SPDX-License-Identifier: Apache-2.0
 *
 * A row of a table for a code. */
#include "ecg_fixed.h"
#include "ecg_kernels.h"

/* in: x (1,); out: row x - low of the table (width,), the first or last one where there is no such row. */
void ecg_lookup(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_lookup_layer *p = layer;
    int32_t row = ecg_clamp(in->data[0] - p->low, 0, p->entries - 1);

    (void)scratch;
    memcpy(out->data, p->table + row * p->width, p->width);
}
