// SPDX-License-Identifier: Apache-2.0
// Feeds a recorded signal to the classifier and prints its decisions, as fast as they come.
//
// With a front-end on the board: replace recorded[] by the samples you read, in microvolts, one int32_t per lead.
#include <$header>

#include "recorded.h"

static ecg_t classifier;
static uint64_t memory[(MODEL_RAM + 7) / 8];
static const char *const names[] = MODEL_CLASS_NAMES;
static uint32_t frame, decisions, wrong;

void setup()
{
    Serial.begin(115200);
    while (!Serial)
        delay(10);
    int error = ecg_init(&classifier, &model, &model_rate, memory, sizeof memory);
    if (error) {
        Serial.print("ecg_init: ");
        Serial.println(error);
        while (true)
            delay(1000);
    }
    ecg_patient(&classifier, RECORDED_AGE, RECORDED_SEX);
}

static void show(const ecg_result &r)
{
    Serial.print("sample ");
    Serial.print((unsigned long)r.sample);
    Serial.print(": ");
    if (r.unreliable)
        Serial.print("unreliable");
    for (int k = 0; k < MODEL_CLASSES && !r.unreliable; k++) {
        if (r.top == k || (r.present >> k & 1u)) {
            Serial.print(names[k]);
            Serial.print(" ");
        }
    }
    if (decisions < RECORDED_DECISIONS) {
        const recorded_decision &e = expected[decisions];
        bool same = e.sample == r.sample && e.present == r.present && e.top == r.top && e.unreliable == r.unreliable;
        wrong += !same;
        Serial.print(same ? " (as expected)" : " (NOT as expected)");
    }
    decisions++;
    Serial.println();
}

void loop()
{
    if (frame == RECORDED_FRAMES) {
        Serial.print((unsigned long)decisions);
        Serial.print(" decisions, ");
        Serial.print((unsigned long)wrong);
        Serial.println(" not as expected");
        frame++;
    }
    if (frame > RECORDED_FRAMES) {
        delay(1000);
        return;
    }
    int32_t uv[MODEL_LEADS];
    for (int lead = 0; lead < MODEL_LEADS; lead++)
        uv[lead] = recorded[frame][lead];
    ecg_result r;
    ecg_push(&classifier, uv, 1, &r);
    if (r.ready)
        show(r);
    frame++;
}
