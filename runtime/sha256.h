// SHA-256 (FIPS 180-4) of a byte range.
#pragma once
#include <stdint.h>

namespace edgec {

void sha256(const uint8_t *data, uint64_t bytes, uint8_t digest[32]);

}  // namespace edgec
