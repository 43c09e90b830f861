/* @ID@ in one header, packaged by edgec @VERSION@: the interface, for C99 and C++17, and its runtime. In exactly one
 * file of C++:
 *
 *     #define EDGEC_IMPLEMENTATION
 *     #include "@ID@.h"
 *
 * gcc or clang; no -m flags: instruction sets are function-level regions, chosen when the program runs (-msimd128 for
 * WebAssembly). Link -lm and -lpthread. Everywhere else include it as it is.
 */
@INTERFACE@
#if defined(EDGEC_IMPLEMENTATION) && !defined(EDGEC_IMPLEMENTED_@UPPER@)
#define EDGEC_IMPLEMENTED_@UPPER@
#if !defined(__cplusplus)
#error "EDGEC_IMPLEMENTATION wants a file of C++ (C++17); other files may be C"
#endif
@RUNTIME@
#endif
