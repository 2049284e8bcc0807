// SPDX-License-Identifier: Apache-2.0
// Classifies recorded windows, each by itself, and prints the logits.
//
// This model does not stream: a window is prepared as in training (train/frontend.py) and quantized to int8 codes.
#include <$header>

#include "recorded.h"

static ecg_t classifier;
static uint64_t memory[(MODEL_RAM + 7) / 8];
static const char *const names[] = MODEL_CLASS_NAMES;
static uint32_t window, wrong;

void setup()
{
    Serial.begin(115200);
    while (!Serial)
        delay(10);
    int error = ecg_init(&classifier, &model, NULL, memory, sizeof memory);
    if (error) {
        Serial.print("ecg_init: ");
        Serial.println(error);
        while (true)
            delay(1000);
    }
}

void loop()
{
    if (window == RECORDED_WINDOWS) {
        Serial.print((unsigned long)window);
        Serial.print(" windows, ");
        Serial.print((unsigned long)wrong);
        Serial.println(" not as expected");
        window++;
    }
    if (window > RECORDED_WINDOWS) {
        delay(1000);
        return;
    }
    int8_t logits[MODEL_CLASSES];
    const int8_t *inputs[] = RECORDED_INPUTS(window);
    bool same = ecg_window(&classifier, inputs, logits) == ECG_OK;
    for (int k = 0; k < MODEL_CLASSES; k++) {
        same = same && logits[k] == expected[window][k];
        Serial.print(names[k]);
        Serial.print(" ");
        Serial.print(logits[k]);
        Serial.print("  ");
    }
    wrong += !same;
    Serial.println(same ? "(as expected)" : "(NOT as expected)");
    window++;
}
