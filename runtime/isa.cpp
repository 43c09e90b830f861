#include "isa.h"

#include "platform.h"

namespace edgec {

edgec_status choose_isa(uint8_t *isa, Message &message) {
    const uint32_t available = available_isas();
    for (uint8_t i = 0; i < ISA_COUNT; i++)
        if (available >> i & 1) *isa = i;
    const char *name = environment("EDGEC_ISA");
    if (!name) return EDGEC_OK;
    Isa forced;
    if (parse_isa(name, &forced) && available >> forced & 1) {
        *isa = forced;
        return EDGEC_OK;
    }
    char choices[128] = {};
    for (uint8_t i = 0; i < ISA_COUNT; i++) {
        if (!(available >> i & 1)) continue;
        const size_t n = strlen(choices);
        snprintf(choices + n, sizeof choices - n, "%s%s", n ? ", " : "", isa_name(Isa(i)));
    }
    return fail(message, EDGEC_ERROR_UNSUPPORTED,
                "open: EDGEC_ISA: found '%.60s', wanted an instruction set of this machine and build: %s", name,
                choices);
}

Isa kernel_isa(const Kernel &kernel, uint8_t isa) {
    // A body that serves every instruction set is the scalar one.
    while (isa > SCALAR && (!kernel.run[isa] || kernel.run[isa] == kernel.run[SCALAR])) isa--;
    return Isa(isa);
}

RunFn kernel_run(const Kernel &kernel, uint8_t isa) { return kernel.run[kernel_isa(kernel, isa)]; }

}  // namespace edgec
