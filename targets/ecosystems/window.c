/* SPDX-License-Identifier: Apache-2.0
 *
 * Classifies recorded windows, each by itself, and prints the logits.
 *
 * This model does not stream: a window is prepared as in training (train/frontend.py) and quantized to int8 codes. */
#include <zephyr/kernel.h>
#include <zephyr/sys/printk.h>

#include <$header>

#include "recorded.h"

static ecg_t classifier;
static uint64_t memory[(MODEL_RAM + 7) / 8];
static const char *const names[] = MODEL_CLASS_NAMES;

int main(void)
{
    uint32_t wrong = 0;
    int error = ecg_init(&classifier, &model, NULL, memory, sizeof memory);

    if (error) {
        printk("ecg_init: %d\n", error);
        return error;
    }
    for (uint32_t window = 0; window < RECORDED_WINDOWS; window++) {
        int8_t logits[MODEL_CLASSES];
        const int8_t *inputs[] = RECORDED_INPUTS(window);
        int same = ecg_window(&classifier, inputs, logits) == ECG_OK;

        for (int k = 0; k < MODEL_CLASSES; k++) {
            same = same && logits[k] == expected[window][k];
            printk("%s %d  ", names[k], logits[k]);
        }
        wrong += !same;
        printk("(%sas expected)\n", same ? "" : "NOT ");
    }
    printk("%u windows, %u not as expected\n", (unsigned int)RECORDED_WINDOWS, (unsigned int)wrong);
    return 0;
}
