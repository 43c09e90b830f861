// The kernel table, built from kernels.def, and what this CPU can run.
#include "view.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace edgec {

#define KERNEL(name, n_out, in_place) \
    const char *name##_check(const Args &); \
    int64_t name##_tiles(const Args &); \
    int64_t name##_cost(const Args &); \
    int64_t name##_scratch(const Args &);
#define PREPARED KERNEL
#define DOTTED KERNEL
#define LEVELED KERNEL
#define NARROW KERNEL
#define PORTABLE KERNEL
#include "kernels.def"
#undef PREPARED
#undef DOTTED
#undef LEVELED
#undef NARROW
#undef PORTABLE
#undef KERNEL

// Declares the bodies of one namespace; the kinds of rows that it has are set before.
#define BODY(name, n_out, in_place) void name(const Args &, int64_t, int64_t, void *);
#define NONE(name, n_out, in_place)

#define KERNEL NONE
#define PREPARED NONE
#define DOTTED NONE
#define LEVELED NONE
#define NARROW NONE
#define PORTABLE BODY
namespace portable {
#include "kernels.def"
}
#undef KERNEL
#undef PREPARED
#undef DOTTED
#undef LEVELED
#undef NARROW
#undef PORTABLE

#define KERNEL BODY
#define PREPARED BODY
#define DOTTED BODY
#define LEVELED BODY
#define NARROW BODY
#define PORTABLE NONE
namespace scalar {
#include "kernels.def"
}
#if EDGEC_HAVE_AVX2
namespace avx2 {
#include "kernels.def"
}
#define EDGEC_AVX2_RUN(name) avx2::name
#else
#define EDGEC_AVX2_RUN(name) nullptr
#endif
#if EDGEC_HAVE_NEON
namespace neon {
#include "kernels.def"
}
#define EDGEC_NEON_RUN(name) neon::name
#else
#define EDGEC_NEON_RUN(name) nullptr
#endif
#if EDGEC_HAVE_WASM
namespace wasm {
#include "kernels.def"
}
#define EDGEC_WASM_RUN(name) wasm::name
#else
#define EDGEC_WASM_RUN(name) nullptr
#endif
#undef NARROW
#define NARROW NONE
#if EDGEC_HAVE_AVX512
namespace avx512 {
#include "kernels.def"
#undef KERNEL
#undef PREPARED
#define KERNEL NONE
#define PREPARED NONE
namespace vbmi {
#include "kernels.def"
}
#undef DOTTED
#define DOTTED NONE
namespace amx {
#include "kernels.def"
}
}  // namespace avx512
#define EDGEC_AVX512_RUN(name) avx512::name
#define EDGEC_VBMI_RUN(name) avx512::vbmi::name
#define EDGEC_AMX_RUN(name) avx512::amx::name
#else
#define EDGEC_AVX512_RUN(name) nullptr
#define EDGEC_VBMI_RUN(name) nullptr
#define EDGEC_AMX_RUN(name) nullptr
#endif
#undef KERNEL
#undef PREPARED
#undef DOTTED
#define KERNEL NONE
#define PREPARED NONE
#define DOTTED NONE
#if EDGEC_HAVE_NEON
namespace neon {
namespace dot {
#include "kernels.def"
}
}  // namespace neon
#define EDGEC_NEONDOT_RUN(name) neon::dot::name
#else
#define EDGEC_NEONDOT_RUN(name) nullptr
#endif
#undef KERNEL
#undef PREPARED
#undef DOTTED
#undef LEVELED
#undef NARROW
#undef PORTABLE
#undef NONE
#undef BODY

#define ROW(name, n_out, in_place, prepares, ...) \
    {#name, n_out, in_place, prepares, name##_check, name##_tiles, name##_cost, name##_scratch, {__VA_ARGS__}},
#define KERNEL(name, n_out, in_place) \
    ROW(name, n_out, in_place, 0, scalar::name, EDGEC_AVX2_RUN(name), EDGEC_AVX512_RUN(name), nullptr, nullptr, \
        EDGEC_NEON_RUN(name), nullptr, EDGEC_WASM_RUN(name))
#define PREPARED(name, n_out, in_place) \
    ROW(name, n_out, in_place, 1, scalar::name, EDGEC_AVX2_RUN(name), EDGEC_AVX512_RUN(name), nullptr, nullptr, \
        EDGEC_NEON_RUN(name), nullptr, EDGEC_WASM_RUN(name))
#define DOTTED(name, n_out, in_place) \
    ROW(name, n_out, in_place, 0, scalar::name, EDGEC_AVX2_RUN(name), EDGEC_AVX512_RUN(name), EDGEC_VBMI_RUN(name), \
        nullptr, EDGEC_NEON_RUN(name), nullptr, EDGEC_WASM_RUN(name))
#define LEVELED(name, n_out, in_place) \
    ROW(name, n_out, in_place, 1, scalar::name, EDGEC_AVX2_RUN(name), EDGEC_AVX512_RUN(name), EDGEC_VBMI_RUN(name), \
        EDGEC_AMX_RUN(name), EDGEC_NEON_RUN(name), EDGEC_NEONDOT_RUN(name), EDGEC_WASM_RUN(name))
#define NARROW(name, n_out, in_place) \
    ROW(name, n_out, in_place, 0, scalar::name, EDGEC_AVX2_RUN(name), nullptr, nullptr, nullptr, \
        EDGEC_NEON_RUN(name), nullptr, EDGEC_WASM_RUN(name))
#define PORTABLE(name, n_out, in_place) \
    ROW(name, n_out, in_place, 0, portable::name, portable::name, portable::name, nullptr, nullptr, portable::name, \
        nullptr, portable::name)
const Kernel kKernels[] = {
#include "kernels.def"
};
#undef KERNEL
#undef PREPARED
#undef DOTTED
#undef LEVELED
#undef NARROW
#undef PORTABLE
#undef ROW
const int kKernelCount = (int)(sizeof kKernels / sizeof kKernels[0]);

const Kernel *find_kernel(const char *name) {
    for (int i = 0; i < kKernelCount; ++i)
        if (strcmp(kKernels[i].name, name) == 0) return &kKernels[i];
    return nullptr;
}

static const char *const kIsaNames[ISA_COUNT] = {"scalar", "avx2", "avx512", "avx512vbmi", "amx", "neon", "neondot", "wasm"};

const char *isa_name(Isa isa) { return isa < ISA_COUNT ? kIsaNames[isa] : "unknown"; }

bool parse_isa(const char *name, Isa *isa) {
    for (int i = 0; i < ISA_COUNT; ++i)
        if (strcmp(kIsaNames[i], name) == 0) {
            *isa = (Isa)i;
            return true;
        }
    return false;
}

#if defined(__x86_64__)
// Linux gives a process the tiles' large state only when asked; asking again changes nothing.
static bool amx_permitted() {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

// The vector levels need the CPU's word (cpuid) and the operating system's: it must save the wider registers (xgetbv).
static uint32_t x86_isas() {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    const bool fma = c >> 12 & 1, osxsave = c >> 27 & 1, avx = c >> 28 & 1, f16c = c >> 29 & 1;
    if (!osxsave || !avx) return 0;
    uint32_t saved, high;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    if ((saved & 0x06) != 0x06) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    const bool avx2 = b >> 5 & 1;
    if (!avx2 || !fma || !f16c) return 0;
    uint32_t found = EDGEC_HAVE_AVX2 ? 1u << AVX2 : 0;
    const uint32_t wanted = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
    if (EDGEC_HAVE_AVX512 && (b & wanted) == wanted && (saved & 0xe6) == 0xe6) found |= 1u << AVX512;
    const bool vbmi = c >> 1 & 1, vnni = c >> 11 & 1, amx = d >> 22 & 1 && d >> 24 & 1;  // amx: BF16, TILE
    if (!(found >> AVX512 & 1) || !vbmi || !vnni) return found;
    found |= 1u << AVX512VBMI;
    if (!amx || (saved & 0x60000) != 0x60000 || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return found;
    const bool bf16 = a >> 5 & 1;
    return bf16 && amx_permitted() ? found | 1u << AMX : found;
}
#endif

#if defined(__x86_64__)
static bool zen4() {
    uint32_t a, b, c, d;
    if (!__get_cpuid(0, &a, &b, &c, &d) || b != signature_AMD_ebx) return false;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (a >> 8 & 15) + (a >> 20 & 255) != 0x19) return false;  // Zen 3 and 4
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b >> 16 & 1;
}
const bool kZen4 = zen4();
#endif

#if EDGEC_HAVE_NEON
// Where the system cannot be asked, what the whole build may use.
static bool dot_products() {
#if defined(__ARM_FEATURE_DOTPROD)
    return true;
#elif defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1;  // ASIMDDP
#else
    return false;
#endif
}
#endif

uint32_t available_isas() {
    uint32_t found = 1u << SCALAR;
#if defined(__x86_64__)
    found |= x86_isas();
#endif
#if EDGEC_HAVE_NEON
    found |= 1u << NEON | (uint32_t)dot_products() << NEONDOT;
#endif
    if (EDGEC_HAVE_WASM) found |= 1u << WASM;
    return found;
}

}  // namespace edgec
