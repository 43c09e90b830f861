#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE  // sched_getaffinity, syscall
#endif
#include "platform.h"

#include <errno.h>
#include <stdlib.h>

#include "memory.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#if !defined(__wasi__)
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif
#endif

namespace edgec {

const char *environment(const char *name) {
    const char *value = getenv(name);
    return value && value[0] ? value : nullptr;
}

#if !defined(__wasi__)
namespace {
// What a new thread receives: it outlives thread_start, so it is on the heap and the thread frees it.
struct ThreadStart {
    void (*entry)(void *);
    void *arg;
};
constexpr size_t kThreadStack = size_t(1) << 20;
}  // namespace
#endif

#if defined(_WIN32)

edgec_status map_file(const char *path, Mapping *mapping, Message &message) {
    wchar_t wide[1024];
    if (!MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, 1024))
        return fail(message, EDGEC_ERROR_IO, "open: path: found one that is too long or not UTF-8");
    HANDLE file = CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ, nullptr, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL,
                              nullptr);
    if (file == INVALID_HANDLE_VALUE)
        return fail(message, EDGEC_ERROR_IO, "open: %s: cannot be opened (system error %lu)", path, GetLastError());
    LARGE_INTEGER size;
    if (GetFileType(file) != FILE_TYPE_DISK || !GetFileSizeEx(file, &size)) {
        CloseHandle(file);
        return fail(message, EDGEC_ERROR_IO, "open: %s: not a regular file", path);
    }
    if (size.QuadPart == 0) {
        CloseHandle(file);
        return fail(message, EDGEC_ERROR_FORMAT, "open: %s: the file is empty", path);
    }
    HANDLE section = CreateFileMappingW(file, nullptr, PAGE_READONLY, 0, 0, nullptr);
    void *data = section ? MapViewOfFile(section, FILE_MAP_READ, 0, 0, 0) : nullptr;
    const DWORD error = GetLastError();
    if (section) CloseHandle(section);
    CloseHandle(file);
    if (!data) return fail(message, EDGEC_ERROR_IO, "open: %s: cannot be mapped (system error %lu)", path, error);
    mapping->data = static_cast<const uint8_t *>(data);
    mapping->bytes = static_cast<uint64_t>(size.QuadPart);
    return EDGEC_OK;
}

void unmap_file(Mapping *mapping) {
    if (mapping->data) UnmapViewOfFile(mapping->data);
    *mapping = Mapping();
}

void *allocate_pages(uint64_t bytes) {
    return bytes > SIZE_MAX ? nullptr : VirtualAlloc(nullptr, size_t(bytes), MEM_COMMIT | MEM_RESERVE, PAGE_READWRITE);
}
void release_pages(void *memory, uint64_t) {
    if (memory) VirtualFree(memory, 0, MEM_RELEASE);
}

uint32_t core_count() {
    const DWORD n = GetActiveProcessorCount(ALL_PROCESSOR_GROUPS);
    return n ? uint32_t(n) : 1;
}

uint64_t now_ns() {
    LARGE_INTEGER frequency, count;
    QueryPerformanceFrequency(&frequency);
    QueryPerformanceCounter(&count);
    const uint64_t f = uint64_t(frequency.QuadPart), c = uint64_t(count.QuadPart);
    return c / f * 1000000000u + c % f * 1000000000u / f;
}

static DWORD WINAPI thread_main(void *memory) {
    const ThreadStart start = *static_cast<ThreadStart *>(memory);
    free(memory);
    start.entry(start.arg);
    return 0;
}

bool thread_start(Thread *thread, void (*entry)(void *), void *arg) {
    ThreadStart *start = static_cast<ThreadStart *>(malloc(sizeof(ThreadStart)));
    if (!start) return false;
    *start = {entry, arg};
    HANDLE handle = CreateThread(nullptr, kThreadStack, thread_main, start, STACK_SIZE_PARAM_IS_A_RESERVATION, nullptr);
    if (!handle) {
        free(start);
        return false;
    }
    thread->handle = uint64_t(reinterpret_cast<uintptr_t>(handle));
    return true;
}

void thread_join(Thread *thread) {
    HANDLE handle = reinterpret_cast<HANDLE>(uintptr_t(thread->handle));
    WaitForSingleObject(handle, INFINITE);
    CloseHandle(handle);
}

void wait_on(const uint32_t *word, uint32_t expected) {
    WaitOnAddress(const_cast<uint32_t *>(word), &expected, sizeof expected, INFINITE);
}
void wake_all(const uint32_t *word) { WakeByAddressAll(const_cast<uint32_t *>(word)); }

static void *default_allocate(void *, size_t bytes, size_t alignment) { return _aligned_malloc(bytes, alignment); }
static void default_release(void *, void *memory, size_t) { _aligned_free(memory); }

#else  // POSIX

static void *default_allocate(void *, size_t bytes, size_t alignment) {
#if defined(__wasi__)
    // Zig's C library adds room of its own to the size and does not look whether the sum still fits 32 bits.
    if (bytes > SIZE_MAX / 2) return nullptr;
#endif
    void *memory = nullptr;
    return posix_memalign(&memory, alignment, bytes) == 0 ? memory : nullptr;
}
static void default_release(void *, void *memory, size_t) { free(memory); }

#if defined(__wasi__)

// WebAssembly: memory is one growing block, so a file is read instead of mapped and pages are plain memory.
static void *map_whole(int file, size_t bytes) {
    uint8_t *data = static_cast<uint8_t *>(default_allocate(nullptr, bytes, kAlignment));
    if (!data) errno = ENOMEM;
    constexpr size_t kMostAtOnce = size_t(1) << 30;
    for (size_t at = 0; data && at < bytes;) {
        const ssize_t n = read(file, data + at, bytes - at < kMostAtOnce ? bytes - at : kMostAtOnce);
        if (n > 0) {
            at += size_t(n);
        } else {
            if (n == 0) errno = EIO;  // it was cut meanwhile
            free(data);
            data = nullptr;
        }
    }
    return data;
}
static void unmap_whole(void *data, size_t) { free(data); }

void *allocate_pages(uint64_t bytes) {
    void *memory = bytes > SIZE_MAX ? nullptr : default_allocate(nullptr, size_t(bytes), kAlignment);
    return memory ? memset(memory, 0, size_t(bytes)) : nullptr;
}
void release_pages(void *memory, uint64_t) { free(memory); }

// One thread: none is ever started, so nobody waits.
uint32_t core_count() { return 1; }
bool thread_start(Thread *, void (*)(void *), void *) { return false; }
void thread_join(Thread *) {}
void wait_on(const uint32_t *, uint32_t) {}
void wake_all(const uint32_t *) {}

#else

static void *map_whole(int file, size_t bytes) {
    void *data = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file, 0);
    return data == MAP_FAILED ? nullptr : data;
}
static void unmap_whole(void *data, size_t bytes) { munmap(data, bytes); }

#endif

edgec_status map_file(const char *path, Mapping *mapping, Message &message) {
    // O_NONBLOCK: a named pipe must be refused below, not waited for.
    const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) return fail(message, EDGEC_ERROR_IO, "open: %.300s: cannot be opened: %s", path, strerror(errno));
    struct stat status;
    edgec_status result = EDGEC_OK;
    if (fstat(file, &status) != 0) {
        result = fail(message, EDGEC_ERROR_IO, "open: %.300s: cannot be examined: %s", path, strerror(errno));
    } else if (!S_ISREG(status.st_mode)) {
        result = fail(message, EDGEC_ERROR_IO, "open: %.300s: found a folder or device, wanted a regular file", path);
    } else if (status.st_size <= 0) {
        result = fail(message, EDGEC_ERROR_FORMAT, "open: %.300s: the file is empty", path);
    } else if (uint64_t(status.st_size) > SIZE_MAX) {
        result = fail(message, EDGEC_ERROR_IO, "open: %.300s: larger than the address space", path);
    } else {
        void *data = map_whole(file, size_t(status.st_size));
        if (!data) {
            result = fail(message, errno == ENOMEM ? EDGEC_ERROR_MEMORY : EDGEC_ERROR_IO,
                          "open: %.300s: cannot be mapped: %s", path, strerror(errno));
        } else {
            mapping->data = static_cast<const uint8_t *>(data);
            mapping->bytes = uint64_t(status.st_size);
        }
    }
    close(file);
    return result;
}

void unmap_file(Mapping *mapping) {
    if (mapping->data) unmap_whole(const_cast<uint8_t *>(mapping->data), size_t(mapping->bytes));
    *mapping = Mapping();
}

uint64_t now_ns() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return uint64_t(t.tv_sec) * 1000000000u + uint64_t(t.tv_nsec);
}

#if !defined(__wasi__)

void *allocate_pages(uint64_t bytes) {
    if (bytes > SIZE_MAX) return nullptr;
    void *memory = mmap(nullptr, size_t(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    return memory == MAP_FAILED ? nullptr : memory;
}
void release_pages(void *memory, uint64_t bytes) {
    if (memory) munmap(memory, size_t(bytes));
}

uint32_t core_count() {
#if defined(__linux__)
    // The cores this process may run on, which taskset and containers restrict; not all that are online.
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        const int n = CPU_COUNT(&set);
        if (n > 0) return uint32_t(n);
    }
#endif
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? uint32_t(n) : 1;
}

static void *thread_main(void *memory) {
    const ThreadStart start = *static_cast<ThreadStart *>(memory);
    free(memory);
    start.entry(start.arg);
    return nullptr;
}

bool thread_start(Thread *thread, void (*entry)(void *), void *arg) {
    static_assert(sizeof(pthread_t) <= sizeof(thread->handle), "a pthread_t fits the handle");
    ThreadStart *start = static_cast<ThreadStart *>(malloc(sizeof(ThreadStart)));
    if (!start) return false;
    *start = {entry, arg};
    pthread_attr_t attributes;
    pthread_t handle;
    bool started = false;
    if (pthread_attr_init(&attributes) == 0) {
        pthread_attr_setstacksize(&attributes, kThreadStack);
        // The host's signal handlers must not run on our threads; a new thread inherits the mask.
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        started = pthread_create(&handle, &attributes, thread_main, start) == 0;
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        pthread_attr_destroy(&attributes);
    }
    if (!started) {
        free(start);
        return false;
    }
    memcpy(&thread->handle, &handle, sizeof handle);
    return true;
}

void thread_join(Thread *thread) {
    pthread_t handle;
    memcpy(&handle, &thread->handle, sizeof handle);
    pthread_join(handle, nullptr);
}

#if defined(__linux__) && !defined(EDGEC_NO_FUTEX)

void wait_on(const uint32_t *word, uint32_t expected) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}
void wake_all(const uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 0x7fffffff, nullptr, nullptr, 0); }

#else

// Without a wait-on-address call that every version has and apps may use (Apple's __ulock_wait is refused by its store):
// one lock and condition for the process. Wake-ups are rare, so sharing costs nothing.
static pthread_mutex_t wait_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wait_condition = PTHREAD_COND_INITIALIZER;

void wait_on(const uint32_t *word, uint32_t expected) {
    pthread_mutex_lock(&wait_lock);
    if (__atomic_load_n(word, __ATOMIC_ACQUIRE) == expected) pthread_cond_wait(&wait_condition, &wait_lock);
    pthread_mutex_unlock(&wait_lock);
}
void wake_all(const uint32_t *) {
    pthread_mutex_lock(&wait_lock);
    pthread_cond_broadcast(&wait_condition);
    pthread_mutex_unlock(&wait_lock);
}

#endif

#endif  // not WebAssembly

#endif

Allocator default_allocator() { return {default_allocate, default_release, nullptr}; }

}  // namespace edgec
