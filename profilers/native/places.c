/* Signed place of the largest magnitude of every group of `width` floats: the code of a cross-polytope hash.

   Magnitudes are compared as integers (the bits of a float without its sign are in order), so that compilers may
   vectorise both passes; equal magnitudes give the lowest place, and not-a-number counts as the largest. */

#include <stdint.h>
#include <string.h>

static inline __attribute__((always_inline)) void places(const float *restrict y, int64_t groups, int64_t width,
                                                         int64_t *restrict out)
{
    for (int64_t g = 0; g < groups; g++) {
        uint32_t bits[width];
        memcpy(bits, y + g * width, sizeof bits);
        uint32_t top = 0;
        for (int64_t i = 0; i < width; i++) {
            uint32_t size = bits[i] & 0x7fffffffu;
            top = size > top ? size : top;
        }
        uint32_t place = (uint32_t)width;
        for (uint32_t i = 0; i < (uint32_t)width; i++) {
            uint32_t here = (bits[i] & 0x7fffffffu) == top ? i : (uint32_t)width;
            place = here < place ? here : place;
        }
        /* minus zero is not below zero */
        out[g] = place + (y[g * width + place] < 0.0f ? width : 0);
    }
}

void signed_places(const float *y, int64_t groups, int64_t width, int64_t *out)
{
    switch (width) {
    case 8: places(y, groups, 8, out); break;
    case 16: places(y, groups, 16, out); break;
    case 32: places(y, groups, 32, out); break;
    case 64: places(y, groups, 64, out); break;
    case 128: places(y, groups, 128, out); break;
    default: places(y, groups, width, out);
    }
}
