// SHA-512 (FIPS 180-4) of bytes that come in parts.
#pragma once
#include <stdint.h>

namespace edgec {

class Sha512 {
  public:
    void update(const uint8_t *data, uint64_t bytes);
    // To be called once, at the end.
    void finish(uint8_t digest[64]);

  private:
    uint64_t state_[8] = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
                          0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};
    uint64_t bytes_ = 0;
    uint8_t block_[128];

    void compress();
};

}  // namespace edgec
