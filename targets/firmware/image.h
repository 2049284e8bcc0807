/* SPDX-License-Identifier: Apache-2.0
 *
 * What an image is made of. image.c describes one of one model; another one brings its own. */
#ifndef IMAGE_H
#define IMAGE_H

#include "app.h"

extern const app_image app_this_image;

#endif
