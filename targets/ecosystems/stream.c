/* SPDX-License-Identifier: Apache-2.0
 *
 * Feeds a recorded signal to the classifier and prints its decisions, as fast as they come.
 *
 * With a front-end on the board: replace recorded[] by the samples you read, in microvolts, one int32_t per lead. */
#include <zephyr/kernel.h>
#include <zephyr/sys/printk.h>

#include <$header>

#include "recorded.h"

static ecg_t classifier;
static uint64_t memory[(MODEL_RAM + 7) / 8];
static const char *const names[] = MODEL_CLASS_NAMES;

static int as_expected(const ecg_result *r, uint32_t number)
{
    const recorded_decision *e = &expected[number];

    return e->sample == r->sample && e->present == r->present && e->top == r->top && e->unreliable == r->unreliable;
}

static void show(const ecg_result *r)
{
    printk("sample %u: %s", (unsigned int)r->sample, r->unreliable ? "unreliable" : "");
    for (int k = 0; k < MODEL_CLASSES && !r->unreliable; k++)
        if (r->top == k || (r->present >> k & 1u))
            printk("%s ", names[k]);
}

int main(void)
{
    uint32_t decisions = 0, wrong = 0;
    int error = ecg_init(&classifier, &model, &model_rate, memory, sizeof memory);

    if (error) {
        printk("ecg_init: %d\n", error);
        return error;
    }
    ecg_patient(&classifier, RECORDED_AGE, RECORDED_SEX);
    for (uint32_t frame = 0; frame < RECORDED_FRAMES; frame++) {
        int32_t uv[MODEL_LEADS];
        ecg_result r;

        for (int lead = 0; lead < MODEL_LEADS; lead++)
            uv[lead] = recorded[frame][lead];
        ecg_push(&classifier, uv, 1, &r);
        if (!r.ready)
            continue;
        show(&r);
        if (decisions < RECORDED_DECISIONS) {
            int same = as_expected(&r, decisions);

            wrong += !same;
            printk(" (%sas expected)", same ? "" : "NOT ");
        }
        decisions++;
        printk("\n");
    }
    printk("%u decisions, %u not as expected\n", (unsigned int)decisions, (unsigned int)wrong);
    return 0;
}
