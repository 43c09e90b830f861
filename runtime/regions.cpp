#include "regions.h"

namespace edgec {
namespace {

// Heap sort: in place, without recursion, n log n whatever the input.
void sort_u64(uint64_t *a, uint64_t n) {
    auto sift = [a](uint64_t root, uint64_t end) {
        for (uint64_t child; (child = 2 * root + 1) < end; root = child) {
            if (child + 1 < end && a[child] < a[child + 1]) child++;
            if (a[root] >= a[child]) return;
            const uint64_t t = a[root];
            a[root] = a[child], a[child] = t;
        }
    };
    for (uint64_t i = n / 2; i-- > 0;) sift(i, n);
    for (uint64_t end = n; end-- > 1;) {
        const uint64_t t = a[0];
        a[0] = a[end], a[end] = t;
        sift(0, end);
    }
}

}  // namespace

bool BitTree::allocate(const Allocator &allocator, uint64_t n) {
    levels_ = 0;
    do {
        if (levels_ == kLevels) return false;
        n = (n + 63) / 64;
        if (!level_[levels_++].allocate(allocator, n)) return false;
    } while (n > 1);
    return true;
}

void BitTree::insert(uint64_t i) {
    for (int k = 0; k < levels_; k++, i /= 64) level_[k][i / 64] |= uint64_t(1) << (i % 64);
}

void BitTree::erase(uint64_t i) {
    for (int k = 0; k < levels_; k++, i /= 64)
        if ((level_[k][i / 64] &= ~(uint64_t(1) << (i % 64))) != 0) return;
}

bool BitTree::at_or_before(uint64_t i, uint64_t *found) const {
    for (int k = 0; k < levels_; k++) {
        const uint64_t bits = level_[k][i / 64] & (~uint64_t(0) >> (63 - i % 64));
        if (bits) {
            uint64_t at = i / 64 * 64 + 63 - uint64_t(__builtin_clzll(bits));
            while (k-- > 0) at = at * 64 + 63 - uint64_t(__builtin_clzll(level_[k][at]));
            *found = at;
            return true;
        }
        if (i / 64 == 0) return false;
        i = i / 64 - 1;
    }
    return false;
}

bool BitTree::at_or_after(uint64_t i, uint64_t *found) const {
    for (int k = 0; k < levels_ && i / 64 < level_[k].size(); k++) {
        const uint64_t bits = level_[k][i / 64] & (~uint64_t(0) << (i % 64));
        if (bits) {
            uint64_t at = i / 64 * 64 + uint64_t(__builtin_ctzll(bits));
            while (k-- > 0) at = at * 64 + uint64_t(__builtin_ctzll(level_[k][at]));
            *found = at;
            return true;
        }
        i = i / 64 + 1;
    }
    return false;
}

bool Regions::begin(const Allocator &allocator, uint64_t *ends, uint64_t n) {
    sort_u64(ends, n);
    n_ = 0;
    for (uint64_t i = 0; i < n; i++)
        if (n_ == 0 || ends[n_ - 1] != ends[i]) ends[n_++] = ends[i];
    cut_ = ends;
    return n_ == 0 || (starts_.allocate(allocator, n_) && end_.allocate(allocator, n_));
}

uint64_t Regions::cell(uint64_t byte) const {
    uint64_t low = 0, high = n_;  // cut_[low] <= byte < cut_[high]
    while (high - low > 1) {
        const uint64_t middle = low + (high - low) / 2;
        (cut_[middle] <= byte ? low : high) = middle;
    }
    return low;
}

void Regions::write(uint64_t from, uint64_t to) {
    const uint64_t left = cell(from), right = cell(to);
    uint64_t at;
    // What the write covers of older regions is gone; what sticks out on either side stays readable.
    if (starts_.at_or_before(left, &at) && end_[at] > left) {
        if (end_[at] > right) {
            starts_.insert(right);
            end_[right] = end_[at];
        }
        end_[at] = uint32_t(left);
    }
    while (starts_.at_or_after(left + 1, &at) && at < right) {
        if (end_[at] > right) {
            starts_.insert(right);
            end_[right] = end_[at];
        }
        starts_.erase(at);
    }
    starts_.insert(left);
    end_[left] = uint32_t(right);
}

bool Regions::readable(uint64_t from, uint64_t to) const {
    uint64_t at;
    if (n_ == 0 || from < cut_[0] || !starts_.at_or_before(cell(from), &at)) return false;
    return cut_[end_[at]] >= to;
}

}  // namespace edgec
