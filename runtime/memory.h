// Memory of the runtime: every byte comes from an Allocator, and every failure is a return value.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace edgec {

constexpr size_t kAlignment = 64;  // a cache line, and the widest vector

struct Allocator {
    void *(*allocate)(void *user, size_t bytes, size_t alignment) = nullptr;  // nullptr on failure
    void (*release)(void *user, void *memory, size_t bytes) = nullptr;
    void *user = nullptr;
};

// The C library's, in platform.cpp.
Allocator default_allocator();

// Checked arithmetic on sizes: false when the result does not fit.
inline bool add_u64(uint64_t a, uint64_t b, uint64_t *sum) { return !__builtin_add_overflow(a, b, sum); }
inline bool mul_u64(uint64_t a, uint64_t b, uint64_t *product) { return !__builtin_mul_overflow(a, b, product); }

// Rounds up to kAlignment; false on overflow.
inline bool align_u64(uint64_t n, uint64_t *aligned) {
    if (!add_u64(n, kAlignment - 1, aligned)) return false;
    *aligned &= ~uint64_t(kAlignment - 1);
    return true;
}

// An owned, zero-filled array of trivially copyable T. A default one is empty; allocate() may be called once.
template <class T>
class Array {
    static_assert(__is_trivially_copyable(T), "Array moves bytes");

  public:
    Array() = default;
    Array(const Array &) = delete;
    Array &operator=(const Array &) = delete;
    ~Array() { release(); }

    bool allocate(const Allocator &allocator, uint64_t n) {
        uint64_t bytes;
        if (!mul_u64(n, sizeof(T), &bytes) || bytes > SIZE_MAX) return false;
        if (bytes == 0) return true;
        void *memory = allocator.allocate(allocator.user, static_cast<size_t>(bytes), kAlignment);
        if (!memory) return false;
        memset(memory, 0, static_cast<size_t>(bytes));
        data_ = static_cast<T *>(memory);
        size_ = n;
        allocator_ = allocator;
        return true;
    }

    void release() {
        if (data_) allocator_.release(allocator_.user, data_, static_cast<size_t>(size_ * sizeof(T)));
        data_ = nullptr;
        size_ = 0;
    }

    T *data() { return data_; }
    const T *data() const { return data_; }
    uint64_t size() const { return size_; }
    uint64_t bytes() const { return size_ * sizeof(T); }
    T &operator[](uint64_t i) { return data_[i]; }
    const T &operator[](uint64_t i) const { return data_[i]; }
    T *begin() { return data_; }
    T *end() { return data_ + size_; }
    const T *begin() const { return data_; }
    const T *end() const { return data_ + size_; }

  private:
    T *data_ = nullptr;
    uint64_t size_ = 0;
    Allocator allocator_;
};

struct Placement {};

}  // namespace edgec

// Placement new under our own tag: <new> belongs to a C++ library that the runtime does without.
inline void *operator new(size_t, void *memory, edgec::Placement) noexcept { return memory; }

namespace edgec {

// One object from the allocator, default-constructed; nullptr when memory is out.
template <class T>
T *create(const Allocator &allocator) {
    void *memory = allocator.allocate(allocator.user, sizeof(T), kAlignment);
    return memory ? new (memory, Placement{}) T() : nullptr;
}

template <class T>
void destroy(const Allocator &allocator, T *object) {
    if (!object) return;
    object->~T();
    allocator.release(allocator.user, object, sizeof(T));
}

}  // namespace edgec
