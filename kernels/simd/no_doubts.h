// For instruction sets whose products of bytes lose nothing, or that have none: meanings as in avx2.h.
constexpr bool kDoubts = false;
EDGEC_INLINE vi vdot8_lost(vi a, vi) { return a; }
EDGEC_INLINE uint32_t vdot8_doubts(vi, bool) { return 0; }
EDGEC_INLINE vi viload_upto(const void *, int64_t) { return viset(0); }
EDGEC_INLINE int32_t vsum_fours(const void *, int64_t) { return 0; }
