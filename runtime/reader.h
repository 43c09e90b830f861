// Bounds-checked reading of little-endian data. A read past the end returns zero and makes the reader `bad` for good,
// so that a parser may test once per record.
#pragma once
#include <stdint.h>
#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "bundles are mapped in place, which needs a little-endian machine"
#endif

namespace edgec {

class Reader {
  public:
    Reader(const uint8_t *data, uint64_t bytes) : data_(data), bytes_(bytes) {}

    bool bad() const { return bad_; }
    uint64_t position() const { return position_; }
    uint64_t left() const { return bytes_ - position_; }

    // The next n bytes, or nullptr.
    const uint8_t *take(uint64_t n) {
        if (bad_ || n > left()) {
            bad_ = true;
            return nullptr;
        }
        const uint8_t *p = data_ + position_;
        position_ += n;
        return p;
    }

    uint8_t u8() { return number<uint8_t>(); }
    uint16_t u16() { return number<uint16_t>(); }
    uint32_t u32() { return number<uint32_t>(); }
    uint64_t u64() { return number<uint64_t>(); }
    int64_t i64() { return number<int64_t>(); }
    float f32() { return number<float>(); }

  private:
    template <class T>
    T number() {
        T value = 0;
        if (const uint8_t *p = take(sizeof(T))) memcpy(&value, p, sizeof(T));
        return value;
    }

    const uint8_t *data_;
    uint64_t bytes_, position_ = 0;
    bool bad_ = false;
};

}  // namespace edgec
