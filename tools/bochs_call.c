// Calls functions of this process on an emulated CPU: the part of run_in_bochs.py that must be native.
//
// bochscpu-python is the CPU of Bochs as a shared library, with hooks into a host that supplies memory. This file is
// loaded before it, globally, so that the dynamic linker takes the functions below for the ones of the same name that
// the library calls: the constructor of the CPU model it starts with, its view of memory, and the hooks of every
// instruction, which are most of the time when they go through the library's own. Guest and host share one address
// space: a page table maps addresses to themselves, so an emulated function works on the memory of its caller.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

// The library's functions that are used here. The first argument is the CPU: 0, the only one.
#define FUNCTIONS(F)                                                                                               \
    F(void, cpu_new, (uint32_t))                                                                                   \
    F(void, cpu_loop, (uint32_t))                                                                                  \
    F(void, cpu_set_mode, (uint32_t))                                                                              \
    F(void, cpu_set_killbit, (uint32_t))                                                                           \
    F(void, cpu_clear_killbit, (uint32_t))                                                                         \
    F(uint64_t, cpu_get_pc, (uint32_t))                                                                            \
    F(uint64_t, cpu_get_cr2, (uint32_t))                                                                           \
    F(void, cpu_set_pc, (uint32_t, uint64_t))                                                                      \
    F(void, cpu_set_sp, (uint32_t, uint64_t))                                                                      \
    F(void, cpu_set_reg64, (uint32_t, uint32_t number, uint64_t))                                                  \
    F(void, cpu_set_eflags, (uint32_t, uint32_t))                                                                  \
    F(void, cpu_set_seg, (uint32_t, uint32_t number, uint32_t present, uint16_t selector, uint64_t base,           \
                          uint32_t limit, uint16_t attributes))                                                    \
    F(void, cpu_set_cr0, (uint32_t, uint64_t))                                                                     \
    F(void, cpu_set_cr3, (uint32_t, uint64_t))                                                                     \
    F(void, cpu_set_cr4, (uint32_t, uint64_t))                                                                     \
    F(void, cpu_set_efer, (uint32_t, uint64_t))                                                                    \
    F(void, cpu_set_xcr0, (uint32_t, uint64_t))                                                                    \
    F(void, cpu_set_star, (uint32_t, uint64_t))                                                                    \
    F(void, cpu_set_lstar, (uint32_t, uint64_t))                                                                   \
    F(void, cpu_set_mxcsr, (uint32_t, uint32_t))                                                                   \
    F(void, cpu_set_fp_cw, (uint32_t, uint16_t))                                                                   \
    F(void, cpu_set_fp_tw, (uint32_t, uint16_t))
#define MEMBER(result, name, arguments) result(*name) arguments;
static struct { FUNCTIONS(MEMBER) } bochs;

// Physical addresses have 40 bits, addresses of a process 47: the gigabytes it uses get physical ones in turn. The first
// four stay free: the interrupt controller answers there.
enum { FIRST = 4, PHYSICAL = 1024, NEIGHBOURS = 4, TABLES = 64 };
static uint64_t host_of[PHYSICAL];
static int physical = FIRST;
static uint64_t tables[TABLES][512] __attribute__((aligned(4096)));
static uint8_t stack[1 << 20] __attribute__((aligned(64)));
// Where an emulated function returns to: `syscall`, then an endless jump that is never reached.
static const uint8_t gate[] = {0x0f, 0x05, 0xeb, 0xfe};
static void *(*make_model)(void *cpu);
static int model_made;

// What the library calls ------------------------------------------------------------------------------------------

// The model that it starts with is a constant there.
EXPORT void *_Z23create_corei3_cnl_cpuidP8BX_CPU_C(void *cpu) {
    model_made = 1;
    return make_model(cpu);
}

EXPORT void *mem_guest_to_host(uint32_t id, uint64_t address, uint32_t access) {
    (void)id, (void)access;
    const uint64_t place = address >> 30;
    if (place >= PHYSICAL || !host_of[place]) {
        fprintf(stderr, "emulated CPU: no memory at physical address %#llx\n", (unsigned long long)address);
        abort();
    }
    return (void *)(host_of[place] + (address & 0x3fffffff));
}

EXPORT void mem_read_phy(uint32_t id, uint64_t address, uint32_t size, void *to) {
    memcpy(to, mem_guest_to_host(id, address, 0), size);
}

EXPORT void mem_write_phy(uint32_t id, uint64_t address, uint32_t size, const void *from) {
    memcpy(mem_guest_to_host(id, address, 1), from, size);
}

EXPORT void bx_instr_before_execution(void) {}
EXPORT void bx_instr_after_execution(void) {}
EXPORT void bx_instr_cnear_branch_taken(void) {}
EXPORT void bx_instr_cnear_branch_not_taken(void) {}
EXPORT void bx_instr_ucnear_branch(void) {}
EXPORT void bx_instr_lin_access(void) {}
EXPORT void bx_instr_phy_access(void) {}
EXPORT void bx_instr_opcode(void) {}
EXPORT void bx_instr_repeat_iteration(void) {}
EXPORT void bx_instr_prefetch_hint(void) {}

// The only far branch is the gate's system call: the function has returned.
EXPORT void bx_instr_far_branch(uint32_t id) { bochs.cpu_set_killbit(id); }

EXPORT void bx_instr_exception(uint32_t id, uint32_t vector, uint32_t error) {
    static const char *const names[] = {[0] = "division", [6] = "invalid opcode", [13] = "protection",
                                        [14] = "page fault", [19] = "vector arithmetic"};
    const uint8_t *at = (const uint8_t *)bochs.cpu_get_pc(id);
    const char *name = vector < sizeof names / sizeof *names && names[vector] ? names[vector] : "exception";
    Dl_info where = {0};
    dladdr(at, &where);
    fflush(stdout);
    fprintf(stderr, "emulated CPU: %s (vector %u, error %u, cr2 %#llx) in %s at %p:", name, vector, error,
            (unsigned long long)bochs.cpu_get_cr2(id), where.dli_sname ? where.dli_sname : "?", (const void *)at);
    for (int k = 0; k < 12; ++k) fprintf(stderr, " %02x", at[k]);
    fputs(vector == 6 ? "\nthe emulated CPU has no such instruction\n" : "\n", stderr);
    abort();
}

// The library is built for a newer C library than it says; these two are all that it takes from there.
EXPORT unsigned long long __isoc23_strtoull(const char *text, char **end, int base) { return strtoull(text, end, base); }

EXPORT int __isoc23_sscanf(const char *text, const char *format, ...) {
    va_list list;
    va_start(list, format);
    const int n = vsscanf(text, format, list);
    va_end(list);
    return n;
}

// Memory ----------------------------------------------------------------------------------------------------------

static uint64_t physical_of(uint64_t address) {
    for (int k = FIRST; k < physical; ++k)
        if (host_of[k] == address >> 30 << 30) return (uint64_t)k << 30 | (address & 0x3fffffff);
    return 0;
}

// The gigabytes that the process uses, and those around them, where it grows.
static int find_memory(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    if (!maps) return 0;
    char line[4096];
    while (fgets(line, sizeof line, maps)) {
        unsigned long long begin, end;
        if (sscanf(line, "%llx-%llx", &begin, &end) != 2 || end > 1ull << 47) continue;
        const uint64_t last = (1ull << 17) - 1, low = begin >> 30, high = (end - 1) >> 30;
        for (uint64_t g = low < NEIGHBOURS ? 0 : low - NEIGHBOURS; g <= high + NEIGHBOURS && g <= last; ++g) {
            if (g == 0 || physical_of(g << 30)) continue;
            if (physical == PHYSICAL) return 0;
            host_of[physical++] = g << 30;
        }
    }
    fclose(maps);
    return 1;
}

// Page tables that map these gigabytes to themselves. tables[0] is the root, the others are what its entries point at.
static int map_memory(void) {
    enum { PRESENT = 1, WRITABLE = 2, WHOLE = 128 };
    int table_of[512] = {0}, used = 1;
    for (int k = FIRST; k < physical; ++k) {
        const uint64_t gigabyte = host_of[k] >> 30, entry = gigabyte >> 9;
        if (!table_of[entry]) {
            if (used == TABLES) return 0;
            tables[0][entry] = physical_of((uint64_t)tables[used]) | PRESENT | WRITABLE;
            table_of[entry] = used++;
        }
        tables[table_of[entry]][gigabyte & 511] = (uint64_t)k << 30 | PRESENT | WRITABLE | WHOLE;
    }
    return 1;
}

// Calls -----------------------------------------------------------------------------------------------------------

// Starts a CPU of a model, a name in Bochs, with the library at `path`. Returns what is wrong, or NULL. Once per process.
EXPORT const char *bochs_start(const char *path, const char *model) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) return dlerror();
#define FIND(result, name, arguments) \
    if (!(*(void **)&bochs.name = dlsym(library, #name))) return "the library has no " #name;
    FUNCTIONS(FIND)
    char symbol[128];
    snprintf(symbol, sizeof symbol, "_Z%zucreate_%s_cpuidP8BX_CPU_C", strlen("create__cpuid") + strlen(model), model);
    if (!(*(void **)&make_model = dlsym(library, symbol))) return "the library has no such CPU model";
    if (!find_memory() || !map_memory()) return "the process is spread over too much of its address space";
    bochs.cpu_new(0);
    if (!model_made) return "the library starts with another CPU model than expected";
    unsigned long thread = 0;
    syscall(SYS_arch_prctl, 0x1003, &thread);  // ARCH_GET_FS: emulated code sees the caller's thread-local memory
    bochs.cpu_set_cr3(0, physical_of((uint64_t)tables));
    bochs.cpu_set_cr4(0, 1 << 5 | 1 << 9 | 1 << 10 | 1 << 18);  // PAE, OSFXSR, OSXMMEXCPT, OSXSAVE
    bochs.cpu_set_efer(0, 1 | 1 << 8 | 1 << 10);                // system calls, long mode
    bochs.cpu_set_cr0(0, 1u << 31 | 1 << 5 | 1 << 4 | 1 << 1 | 1);  // paging, protection, floating point as usual
    bochs.cpu_set_xcr0(0, 0xe7);                                // x87, SSE, AVX, AVX-512
    bochs.cpu_set_star(0, 8ull << 32);
    bochs.cpu_set_lstar(0, (uint64_t)(gate + 2));
    bochs.cpu_set_fp_cw(0, 0x37f);
    bochs.cpu_set_fp_tw(0, 0xffff);
    for (uint32_t segment = 0; segment < 6; ++segment)  // es, cs, ss, ds, fs, gs, in ring 0
        bochs.cpu_set_seg(0, segment, 1, segment == 1 ? 8 : 16, segment == 4 ? thread : 0, 0xffffffff,
                          segment == 1 ? 0xa09b : 0xc093);
    bochs.cpu_set_mode(0);
    return NULL;
}

// f(a, b, c, d) on the emulated CPU, its result dropped. What it cannot do ends the process with a message.
EXPORT void bochs_call(void (*f)(void), uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    enum { RCX = 1, RDX = 2, RSI = 6, RDI = 7 };
    uint64_t *top = (uint64_t *)(stack + sizeof stack) - 9;  // a multiple of 16 before the return address
    *top = (uint64_t)gate;
    bochs.cpu_set_reg64(0, RDI, a);
    bochs.cpu_set_reg64(0, RSI, b);
    bochs.cpu_set_reg64(0, RDX, c);
    bochs.cpu_set_reg64(0, RCX, d);
    bochs.cpu_set_sp(0, (uint64_t)top);
    bochs.cpu_set_pc(0, (uint64_t)f);
    bochs.cpu_set_eflags(0, 2);
    bochs.cpu_set_mxcsr(0, 0x1f80);
    bochs.cpu_clear_killbit(0);
    bochs.cpu_loop(0);
}
