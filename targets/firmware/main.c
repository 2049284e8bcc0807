/* SPDX-License-Identifier: Apache-2.0
 *
 * An image: a board's HAL, a model, and the application between them. Its one instance of state is here. */
#include "image.h"

static app_t app;

int main(void)
{
    app_init(&app, &app_this_image);
    for (;;)
        app_step(&app);
}
