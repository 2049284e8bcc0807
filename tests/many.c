/* SPDX-License-Identifier: Apache-2.0
 *
 * Many models in one shared library, for tests/many.py, which generates the list of them. */
#include <stdlib.h>

#include "ecg.h"

extern const ecg_model *const many_models[];

/* n windows of model `which`: inputs[i] are the codes of its input i, sizes[i] of them for each window. 0 or an error of
 * ecg.h. */
int many_windows(int32_t which, int32_t n, const int8_t *const *inputs, const int32_t *sizes, int8_t *logits)
{
    const ecg_model *model = many_models[which];
    const uint32_t bytes = ecg_memory(model, NULL);
    const int8_t *at[1 + ECG_SIDES];
    void *memory = aligned_alloc(8, (bytes + 7) / 8 * 8);
    ecg_t engine;
    int error = memory ? ecg_init(&engine, model, NULL, memory, bytes) : ECG_E_MEMORY;

    for (int32_t w = 0; w < n && !error; w++) {
        for (int32_t i = 0; i < 1 + model->side_count; i++)
            at[i] = inputs[i] + (size_t)w * (size_t)sizes[i];
        error = ecg_window(&engine, at, logits + (size_t)w * model->classes);
    }
    free(memory);
    return error;
}
