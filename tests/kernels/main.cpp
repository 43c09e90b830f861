// kernel_tests [--isa NAME] [--seed N] [--filter KERNEL] [--case TEXT] [--every N] [--hostile ROUNDS] [--list]
// --case: only cases with TEXT in their label. --every: one of N cases, which ones by the seed. --list with --filter: the labels.
// Every row of kernels.def needs at least one case, or the run fails.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>

#include "harness.h"

using namespace kt;

static int usage(const char *what, const char *value) {
    fprintf(stderr,
            "kernel_tests: %s '%s'; usage: kernel_tests [--isa NAME] [--seed N] [--filter KERNEL] [--case TEXT] "
            "[--every N] [--hostile ROUNDS] [--list]\n",
            what, value);
    return 2;
}

KT_EXPORT int main(int argc, char **argv) {
    uint64_t seed = 1;
    int rounds = 60;
    uint64_t every = 1;
    const char *filter = nullptr, *label = nullptr;
    bool list = false;
    std::vector<Isa> isas;
    for (int n = 0; n < ISA_COUNT; ++n)
        if (available_isas() >> n & 1) isas.push_back((Isa)n);
    for (int n = 1; n < argc; ++n) {
        const bool more = n + 1 < argc;
        if (!strcmp(argv[n], "--list")) list = true;
        else if (!strcmp(argv[n], "--isa") && more) {
            Isa isa;
            if (!parse_isa(argv[++n], &isa)) return usage("unknown instruction set", argv[n]);
            if (!(available_isas() >> isa & 1) && !kt_emulate) return usage("this CPU or build lacks instruction set", argv[n]);
            isas.assign(1, isa);
        } else if ((!strcmp(argv[n], "--seed") || !strcmp(argv[n], "--hostile") || !strcmp(argv[n], "--every")) && more) {
            char *end;
            const char which = argv[n][2];
            const unsigned long long value = strtoull(argv[++n], &end, 10);
            if (*end || end == argv[n] || (which != 's' && value > 1000000)) return usage("not a number", argv[n]);
            if (which == 'e' && value == 0) return usage("not a number", argv[n]);
            if (which == 's') seed = value;
            if (which == 'h') rounds = (int)value;
            if (which == 'e') every = value;
        } else if (!strcmp(argv[n], "--filter") && more) {
            filter = argv[++n];
            if (!find_kernel(filter)) return usage("unknown kernel", filter);
        } else if (!strcmp(argv[n], "--case") && more) {
            label = argv[++n];
        } else {
            return usage("unknown or incomplete argument", argv[n]);
        }
    }

    int64_t passed = 0, failed = 0;
    for (const Group *g = g_groups; g; g = g->next)
        if (!find_kernel(g->kernel))
            ++failed, printf("%s: cases for a kernel that kernels.def does not have\n", g->kernel);
    for (int n = 0; n < kKernelCount; ++n) {
        const Kernel &kernel = kKernels[n];
        if (filter && strcmp(filter, kernel.name)) continue;
        Suite suite{{seed * 0x9e3779b97f4a7c15ull + (uint64_t)n}, &kernel, {}};
        for (const Group *g = g_groups; g; g = g->next)
            if (!strcmp(g->kernel, kernel.name)) g->fill(suite);
        if (suite.cases.empty()) {
            ++failed;
            printf("%s: a row of kernels.def without a case\n", kernel.name);
            continue;
        }
        if (every > 1) {
            uint64_t index = seed;
            auto &all = suite.cases;
            const size_t first = seed % std::min<size_t>(every, all.size());  // at least one
            std::swap(all[0], all[first]);
            all.erase(std::remove_if(all.begin() + 1, all.end(), [&](const auto &) { return ++index % every != 0; }),
                      all.end());
        }
        if (label) {
            auto &all = suite.cases;
            all.erase(std::remove_if(all.begin(), all.end(),
                                     [&](const auto &c) { return c->label.find(label) == std::string::npos; }),
                      all.end());
            if (all.empty()) continue;
        }
        if (list) {
            for (const auto &c : suite.cases)
                if (filter) printf("%s\n", c->label.c_str());
            printf("%-18s %4zu cases\n", kernel.name, suite.cases.size());
            continue;
        }
        printf("%-18s %4zu cases", kernel.name, suite.cases.size());
        std::vector<std::string> messages;
        std::vector<Isa> own;  // levels above AVX2 and NEON may have none of their own
        for (const Isa isa : isas)
            if (kernel.run[isa] || isa < AVX512 || (isa > AMX && isa != NEONDOT)) own.push_back(isa);
        for (const Isa isa : own) {
            double worst = 0;
            for (const auto &c : suite.cases) {
                const Result r =
                    kernel.run[isa] ? run_case(*c, isa, suite.rng) : Result{false, 0, "no such function in this build"};
                worst = std::max(worst, r.worst);
                ++(r.ok ? passed : failed);
                if (!r.ok) messages.push_back(std::string(isa_name(isa)) + " " + r.message);
            }
            printf("  %s %.1e", isa_name(isa), worst);
        }
        int64_t accepted = 0;
        for (const auto &c : suite.cases) {
            if (rounds == 0) break;
            const Result r = run_hostile(*c, own, suite.rng, rounds, &accepted);
            ++(r.ok ? passed : failed);
            if (!r.ok) messages.push_back(r.message);
        }
        printf("  hostile %lld of %lld ran\n", (long long)accepted, (long long)rounds * (long long)suite.cases.size());
        for (const std::string &m : messages) printf("    FAILED %s\n", m.c_str());
        fflush(stdout);
    }
    if (label && passed + failed == 0 && !list) return usage("no case for", label);
    if (!list) printf("%lld passed, %lld failed\n", (long long)passed, (long long)failed);
    return failed ? 1 : 0;
}
