// What a kernel is: a pure function over views, split into tiles. Kernels own no memory and no threads.
//
// The caller (runtime/executor.cpp) guarantees that every view's data covers exactly bytes_of(view), and calls
// check() on the concrete views before tiles(), scratch() and run(). A kernel therefore must accept exactly the
// shapes whose run() stays inside its views: check() is the whole memory-safety argument and is written first.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace edgec {

constexpr int kMaxRank = 8;
// Larger dims cannot be backed by memory; the bound keeps every sum and product of a few parameters exact.
constexpr int64_t kMaxDim = int64_t(1) << 40;

enum Dtype : uint8_t { F32 = 1, F16 = 2, BF16 = 3, I8 = 4, U8 = 5, I32 = 6, I64 = 7, BOOL = 8 };
enum Format : uint8_t { PLAIN = 0, PANEL16 = 1 };
// Each x86 level has all that stands before it; AVX512VBMI (with VNNI) and AMX bring a few kernels of their own, as does
// NEONDOT (NEON with dot products of bytes).
enum Isa : uint8_t { SCALAR = 0, AVX2 = 1, AVX512 = 2, AVX512VBMI = 3, AMX = 4, NEON = 5, NEONDOT = 6, WASM = 7, ISA_COUNT = 8 };

struct View {
    void *data = nullptr;  // nullptr: the operand is absent
    uint8_t dtype = 0, format = PLAIN, rank = 0;
    int64_t dim[kMaxRank] = {};
};

struct Args {
    const View *op;
    const int64_t *i;
    const float *f;
    int32_t n_op, n_i, n_f;
    int32_t *fault;  // set to 1 when an index inside the data is out of range; the result is then undefined but in bounds
};

// nullptr when the arguments are acceptable, else a static sentence saying what is wrong.
using CheckFn = const char *(*)(const Args &);
using TilesFn = int64_t (*)(const Args &);    // > 0 unless an output is empty; tiles may run in any order, on any thread
using CostFn = int64_t (*)(const Args &);     // about how many nanoseconds one core needs; only steers threading
using ScratchFn = int64_t (*)(const Args &);  // bytes each thread needs, 64-byte aligned; 0 if none
using RunFn = void (*)(const Args &, int64_t tile_begin, int64_t tile_end, void *scratch);

struct Kernel {
    const char *name;
    uint8_t n_out;    // operands [0, n_out) are written (a null view among them is allowed where docs/kernels.md says)
    uint8_t in_place; // outputs may exactly alias an input of the same extent
    uint8_t prepares; // run(args, 0, 0, scratch) fills a thread's scratch: once per thread and call, before its first tiles
    CheckFn check;
    TilesFn tiles;
    CostFn cost;
    ScratchFn scratch;
    RunFn run[ISA_COUNT];  // nullptr where this build has no such instruction set, or the next plainer one's is as good
};

extern const Kernel kKernels[];
extern const int kKernelCount;
const Kernel *find_kernel(const char *name);  // nullptr if unknown

// The instruction sets this CPU and this build both have; bit 1 << Isa. SCALAR is always among them.
uint32_t available_isas();
const char *isa_name(Isa isa);
// Whether this is an AMD core of the Zen 4 family: its reads of memory wait where those of other cores drop a prefetch.
#if defined(__x86_64__)
extern const bool kZen4;
#else
constexpr bool kZen4 = false;
#endif
// Name -> Isa; false for a name that does not exist.
bool parse_isa(const char *name, Isa *isa);

int64_t dtype_size(uint8_t dtype);  // bytes; 0 for an unknown dtype
// Elements (product of dims); -1 on overflow past 2^60 or a negative dim.
int64_t count_of(const View &v);
// Stored bytes for dtype, format and dims; -1 if they make no sense together.
int64_t bytes_of(const View &v);

}  // namespace edgec
