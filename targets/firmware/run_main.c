/* SPDX-License-Identifier: Apache-2.0
 *
 * An image that evaluates windows: inputs from the file on the emulator's command line, logits as lines of numbers.
 * targets/mcu.py writes the file: the number of windows, then the inputs of each. With RUN_TRACE the codes that every
 * node wrote come first, a line of hexadecimal digits for each node. */
#include "ecg_boot.h"
#include "ecg_semihost.h"
#include "model.h"

static uint64_t memory[MODEL_RAM / 8];
static int8_t inputs[RUN_INPUT_BYTES], logits[RUN_CLASSES];
static char path[512];
static ecg_t engine;

#ifdef RUN_TRACE
static void show(void *context, uint16_t node, const ecg_view *out)
{
    const ecg_tensor *t = &model.window->tensors[model.window->nodes[node].out];
    char text[129];
    uint32_t n = 0;
    (void)context;
    for (uint16_t row = 0; row < t->rows; row++) {
        for (int32_t i = 0; i < out->end - out->first; i++) {
            const uint8_t code = (uint8_t)out->data[row * out->pitch + i];
            text[n++] = "0123456789abcdef"[code >> 4];
            text[n++] = "0123456789abcdef"[code & 15];
            if (n + 1 == sizeof text) {
                text[n] = 0;
                ecg_print(text);
                n = 0;
            }
        }
    }
    text[n++] = 0;
    ecg_print(text);
    ecg_print("\n");
}
#endif

int main(void)
{
    const int8_t *at[1 + ECG_SIDES];
    uint32_t windows, used = 0;
    int32_t file;
    if (ecg_init(&engine, &model, NULL, memory, sizeof memory) != ECG_OK)
        ecg_exit(2);
#ifdef RUN_TRACE
    engine.net.watch = show;
#endif
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
    ecg_exit(0);
}
