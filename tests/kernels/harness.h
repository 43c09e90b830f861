// The kernel test framework. A case is one kernel call: operands, parameters, and a reference that computes the
// outputs in double or int64. The runner does the rest on every instruction set: misaligned buffers with canaries,
// pieces of tiles in random order, in-place variants, comparison, and hostile mutations of the arguments.
//
//     CASES(linear) {                                   // `s` is the Suite: s.rng, s.add(label)
//         Case &c = s.add("3x5x7");
//         c.out(F32, {3, 5}).in(F32, {3, 7}).in(F32, {5, 7}, PANEL16).none().none();
//         c.ints({0, 0}).floats({0, 0});
//         c.reference = [](Case &c) {                   // op[k].real (floats) or op[k].whole (integers), row-major
//             for (...) c.op[0].real[i] = ...;
//         };
//     }
#pragma once
#include <stdint.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../../kernels/kernel.h"

#define KT_EXPORT __attribute__((visibility("default")))
// Set by tools/run_in_bochs.py, which loads these tests as a library: calls function(a, b, c, d) on a CPU that has what
// this one lacks. Kernels then run there, all else here.
extern "C" KT_EXPORT void (*kt_emulate)(void (*function)(), uint64_t a, uint64_t b, uint64_t c, uint64_t d);

namespace kt {
using namespace edgec;

struct Rng {
    uint64_t state;
    uint64_t next();
    int64_t range(int64_t lo, int64_t hi);  // inclusive
    double uniform(double lo, double hi);
};

using Dims = std::vector<int64_t>;

struct Operand {
    View view;                   // dtype, format, dims; data is set by the runner
    bool absent = false;
    std::vector<double> real;    // values of F32, F16, BF16 operands, exactly as stored; panel16 as [..., N, K]
    std::vector<int64_t> whole;  // values of I8 .. BOOL operands
    int64_t dim(int d) const { return view.dim[d < 0 ? view.rank + d : d]; }
    int64_t count() const;
};

// How an error is measured: |got - want| over max(|want|, floor), or over the largest |want| of the last dim's row, or
// the root mean square of all differences of an output over floor, or over its own in `floors`.
enum Scale { ELEMENT, ROW, NORM };

struct Case {
    std::string label;
    const Kernel *kernel = nullptr;
    std::vector<Operand> op;
    std::vector<int64_t> i;
    std::vector<float> f;
    std::function<void(Case &)> reference;        // outputs hold their random initial contents before
    std::vector<Operand> answer;                  // what it made of op, once it was asked
    std::vector<std::pair<int, int>> in_place;    // variants to run as well: output index, input operand index
    Scale scale = ROW;
    double tolerance = 1e-5, floor = 1.0;
    std::vector<double> floors;  // of each output; empty: all have the same
    std::function<double(Isa)> bound;             // where it is set: the tolerance of an instruction set
    bool fault = false;                           // the run must raise the fault flag; values are not compared
    Rng *rng = nullptr;

    Case &out(uint8_t dtype, const Dims &dims);
    // Floats uniform in [lo, hi], integers whole in it; the defaults are [-1, 1] and [-100, 100] (U8, BOOL: from 0, to
    // 1).
    Case &in(uint8_t dtype, const Dims &dims, Format format = PLAIN);
    Case &in(uint8_t dtype, const Dims &dims, double lo, double hi);
    Case &values(uint8_t dtype, const Dims &dims, const std::vector<double> &values);
    Case &none();  // an absent operand
    Case &ints(std::vector<int64_t> v) { i = std::move(v); return *this; }
    Case &floats(std::vector<float> v) { f = std::move(v); return *this; }
    Case &also_in_place(int output, int input) { in_place.emplace_back(output, input); return *this; }
};

struct Suite {
    Rng rng;
    const Kernel *kernel;
    std::vector<std::unique_ptr<Case>> cases;
    Case &add(const std::string &label);
};

struct Group {
    const char *kernel;
    void (*fill)(Suite &);
    Group *next;
    Group(const char *kernel, void (*fill)(Suite &));
};
extern Group *g_groups;

#define CASES(name)                                              \
    static void cases_##name(kt::Suite &s);                      \
    static kt::Group group_##name(#name, cases_##name);          \
    static void cases_##name(kt::Suite &s)

// Independent of kernels/view.h on purpose.
double decode_half(uint16_t bits, bool bf16);
uint16_t encode_half(double x, bool bf16);
// x rounded to what the dtype stores.
double round_to(uint8_t dtype, double x);

bool is_float(uint8_t dtype);
// Operand values -> stored bytes, and back.
std::vector<uint8_t> encode(const Operand &o);
void decode(Operand *o, const uint8_t *bytes);

// One operand's memory: canaries before and (without AddressSanitizer, which sees further) after the bytes.
class Buffer {
  public:
    Buffer(const std::vector<uint8_t> &bytes, size_t shift);  // data at a multiple of 64, plus shift
    ~Buffer();
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    uint8_t *data() { return data_; }
    bool intact() const;

  private:
    uint8_t *block_ = nullptr, *data_ = nullptr;
    size_t front_ = 0, size_ = 0;
};

// Memory and arguments of one run: each operand at a random multiple of its element size.
struct Bench {
    std::vector<std::unique_ptr<Buffer>> own;
    std::vector<View> views;
    std::vector<int64_t> ints;
    std::vector<float> floats;
    std::unique_ptr<Buffer> scratch;
    int32_t fault = 0;
    Args args;
    Bench(const std::vector<Operand> &ops, const std::vector<std::vector<uint8_t>> &bytes,
          const std::vector<int64_t> &ints, const std::vector<float> &floats, Rng &rng);
    Bench(const Bench &) = delete;
    Bench &operator=(const Bench &) = delete;
    void make_scratch(int64_t bytes, bool zeros = false);
    // All tiles at once, or in pieces in random order; scratch is prepared first where the kernel wants that.
    void run(const Kernel &k, Isa isa, int64_t tiles, bool pieces, Rng &rng);
};

std::string text(const char *format, ...) __attribute__((format(printf, 1, 2)));

struct Result {
    bool ok = true;
    double worst = 0;
    std::string message;
};
Result run_case(Case &c, Isa isa, Rng &rng);
// Mutates the arguments of c; an accepted mutation runs inside canaries. accepted counts those that ran.
Result run_hostile(const Case &c, const std::vector<Isa> &isas, Rng &rng, int rounds, int64_t *accepted);

}  // namespace kt
