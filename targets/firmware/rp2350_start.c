/* SPDX-License-Identifier: Apache-2.0
 *
 * What the boot ROM of the RP2350 looks for in the first 4 kB of flash (data sheet, section 5.9): a block that says "code
 * for ARM, to be run in the secure world", which links to itself. */
#include <stdint.h>

extern const uint32_t image_def[];

const uint32_t image_def[5] __attribute__((section(".image_def"), used)) = {
    0xffffded3u,                /* a block begins */
    0x10210142u,                /* item IMAGE_TYPE: executable, secure, ARM, RP2350 */
    0x000001ffu,                /* last item; one word of items came before */
    0,                          /* the next block is this one */
    0xab123579u,                /* the block ends */
};
