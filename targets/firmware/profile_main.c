/* SPDX-License-Identifier: Apache-2.0
 *
 * An image that runs one window and the last of some hops of a model, marking every layer for the counting emulator.
 * targets/layers.py writes profile.h: inputs and the names of the regions. */
#include "ecg_boot.h"
#include "ecg_semihost.h"
#include "model.h"
#include "profile.h"

static uint64_t memory[MODEL_RAM / 8];
static ecg_t engine;

/* The layer just done gives way to the next; "" is in no region. */
static void next(void *context, uint16_t node, const ecg_view *out)
{
    const char *const **at = (const char *const **)context;
    (void)node;
    (void)out;
    ++*at;
    ecg_mark(**at);
}

static void begin(const char *const **at, const char *const *marks)
{
    *at = marks;
    engine.net.watch = next;
    engine.net.context = at;
    ecg_mark(*marks);
}

int main(void)
{
    const char *const *at;
    if (ecg_init(&engine, &model, NULL, memory, sizeof memory) != ECG_OK)
        ecg_exit(2);
    if (model.window) {
        int8_t logits[PROFILE_CLASSES];
        begin(&at, profile_window);
        ecg_window(&engine, profile_inputs, logits);
        ecg_mark("");
    }
    engine.net.watch = NULL;
    ecg_reset(&engine);
    for (int32_t n = 0, due; n < PROFILE_FRAMES;) {
        n += ecg_net_take(&engine.net, model.stream, profile_record + n * model.leads, PROFILE_FRAMES - n, &due);
        if (n == PROFILE_FRAMES)
            begin(&at, profile_hop);
        if (due)
            ecg_net_step(&engine.net, model.stream, profile_inputs + 1);
        ecg_mark("");
    }
    ecg_print("stack ");
    ecg_print_int((int32_t)ecg_stack_used());
    ecg_print("\n");
    ecg_exit(0);
}
