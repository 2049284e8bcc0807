/* SPDX-License-Identifier: Apache-2.0
 *
 * An image that evaluates windows: inputs from the file on the emulator's command line, logits as lines of hexadecimal
 * codes. targets/mcu.py writes the file: the number of windows, then the inputs of each. */
#include "ecg_boot.h"
#include "ecg_semihost.h"
#include "model.h"

static uint64_t memory[MODEL_RAM / 8];
static int8_t inputs[RUN_INPUT_BYTES], logits[RUN_CLASSES];
static char path[512];
static ecg_t engine;

int main(void)
{
    const int8_t *at[1 + ECG_SIDES];
    uint32_t windows, used = 0;
    int32_t file;
    if (ecg_init(&engine, &model, NULL, memory, sizeof memory) != ECG_OK)
        ecg_exit(2);
    for (uint16_t i = 0; i < model.window->given_count; i++) {
        const ecg_tensor *t = &model.window->tensors[model.window->given[i]];
        at[i] = inputs + used;
        used += (uint32_t)t->rows * t->columns;
    }
    if (ecg_command_line(path, sizeof path) || (file = ecg_open(path)) < 0 || ecg_read(file, &windows, sizeof windows))
        ecg_exit(3);
    while (windows--) {
        if (ecg_read(file, inputs, used))
            ecg_exit(4);
        ecg_window(&engine, at, logits);
        for (uint16_t k = 0; k < model.classes; k++) {
            ecg_print_int(logits[k]);
            ecg_print(k + 1 < model.classes ? " " : "\n");
        }
    }
    ecg_print("stack ");
    ecg_print_int((int32_t)ecg_stack_used());
    ecg_print("\n");
    ecg_exit(0);
}
