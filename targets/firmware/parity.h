/* SPDX-License-Identifier: Apache-2.0
 *
 * What targets/parity_image.py generates for parity_main.c. */
#ifndef PARITY_H
#define PARITY_H

#include "ecg.h"

extern const ecg_model *const parity_models[];
extern const uint32_t parity_models_count;
extern int8_t parity_data[];            /* as many bytes as the largest job sends at once */

#endif
