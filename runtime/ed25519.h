// Verifies Ed25519 signatures (RFC 8032). Nothing here is secret, so the time may depend on the data.
#pragma once
#include <stdint.h>

namespace edgec {

#if defined(EDGEC_NO_SIGNATURES)
constexpr bool kVerifiesSignatures = false;  // without.cpp
#else
constexpr bool kVerifiesSignatures = true;
#endif

// Whether `signature` is one of `message` by the holder of `key`. Stricter than RFC 8032 where that leaves a choice:
// the equation is the one without cofactor, [S]B = R + [k]A, compared as bytes; S must be below the order of B, R and A
// encoded as RFC 8032 encodes them; and a key of small order, under which a signature proves nothing, is refused.
bool ed25519_verify(const uint8_t key[32], const uint8_t signature[64], const uint8_t *message, uint64_t bytes);

}  // namespace edgec
