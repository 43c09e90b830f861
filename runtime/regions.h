// Which bytes of an arena hold which write, over a sequence of writes and reads.
//
// All ends of writes are known beforehand, so the arena is cut there into cells, and the live regions are a set of cell
// indices in a bit tree: each write and each read costs a few word operations however hostile the sequence is.
#pragma once
#include "memory.h"

namespace edgec {

// A set of integers below n with nearest-member search, 64 children per node.
class BitTree {
  public:
    bool allocate(const Allocator &allocator, uint64_t n);
    void insert(uint64_t i);
    void erase(uint64_t i);
    bool at_or_before(uint64_t i, uint64_t *found) const;  // the greatest member <= i
    bool at_or_after(uint64_t i, uint64_t *found) const;   // the least member >= i

  private:
    static constexpr int kLevels = 5;  // 64^5 > 2^29 members
    Array<uint64_t> level_[kLevels];
    int levels_ = 0;
};

class Regions {
  public:
    // Cuts at ends[0..n), in any order; the array is sorted in place and must live as long as this object.
    bool begin(const Allocator &allocator, uint64_t *ends, uint64_t n);
    // Both ends of a write must be among the cuts; from < to.
    void write(uint64_t from, uint64_t to);
    // Whether all of from..to lies in one region of one write that nothing has overwritten there.
    bool readable(uint64_t from, uint64_t to) const;

  private:
    uint64_t cell(uint64_t byte) const;  // the last cut <= byte

    const uint64_t *cut_ = nullptr;
    uint64_t n_ = 0;
    BitTree starts_;
    Array<uint32_t> end_;  // of the region that starts at a cell
};

}  // namespace edgec
