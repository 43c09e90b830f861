/* The bundle as an object of the program: 64-byte aligned, read-only, never copied. */
#if defined(__APPLE__)
#define BEGIN ".section __DATA,__const\n"
#define NAME(name) "_" name
#elif defined(_WIN32)
#define BEGIN ".section .rdata,\"dr\"\n"
#define NAME(name) name
#else
#define BEGIN ".section .rodata\n"
#define NAME(name) name
#endif

__asm__(BEGIN
        ".globl " NAME("@ID@_bundle") "\n"
        ".globl " NAME("@ID@_bundle_end") "\n"
        ".balign 64\n" NAME("@ID@_bundle") ":\n"
        ".incbin \"" EDGEC_BUNDLE "\"\n" NAME("@ID@_bundle_end") ":\n"
        ".byte 0\n"
        ".text\n");
