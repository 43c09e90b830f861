// For instruction sets where products of bytes gain nothing: meanings as in avx2.h.
constexpr bool kDotBytes = false;
EDGEC_INLINE void vdot8(vi *, vi, vi, vi) {}
EDGEC_INLINE void vfours16(uint8_t *, const int8_t *, const int8_t *, int) {}
#include "no_doubts.h"
