// Which of the instruction sets that a machine and a build both have is used.
#pragma once
#include "kernel.h"
#include "message.h"

namespace edgec {

// The newest one, or what EDGEC_ISA names; EDGEC_ERROR_UNSUPPORTED when that is none of this machine and build.
edgec_status choose_isa(uint8_t *isa, Message &message);
Isa kernel_isa(const Kernel &kernel, uint8_t isa);    // that instruction set, or the next plainer one with a body
RunFn kernel_run(const Kernel &kernel, uint8_t isa);  // the body of kernel_isa

}  // namespace edgec
