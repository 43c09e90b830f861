// The only place that knows an operating system: files, pages, threads, time, wait and wake.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "message.h"

namespace edgec {

// A read-only private view of a whole regular file.
// A file that shrinks while mapped raises the system's bus error when its lost pages are read; the bundle therefore
// copies everything it takes decisions from, and only weights are ever read through the mapping.
struct Mapping {
    const uint8_t *data = nullptr;
    uint64_t bytes = 0;
};
edgec_status map_file(const char *path, Mapping *mapping, Message &message);
void unmap_file(Mapping *mapping);

// Zero pages that cost nothing until touched; nullptr when the system refuses.
void *allocate_pages(uint64_t bytes);
void release_pages(void *memory, uint64_t bytes);

uint32_t core_count();  // cores this process may use, at least 1
uint64_t now_ns();      // monotonic
const char *environment(const char *name);  // nullptr when unset or empty

inline void cpu_pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield");
#endif
}

struct Thread {
    uint64_t handle = 0;
};
// Runs entry(arg) on a new thread with a 1 MiB stack that takes no signals of the host. false when the system refuses.
bool thread_start(Thread *thread, void (*entry)(void *), void *arg);
void thread_join(Thread *thread);

// Sleeps while *word == expected; may wake for no reason. wake_all wakes every sleeper on the word.
void wait_on(const uint32_t *word, uint32_t expected);
void wake_all(const uint32_t *word);

}  // namespace edgec
