// Kernels that move, choose or count elements: one body in plain C serves every instruction set, for memory is their
// limit or they are a small part of any model.
#include "../contract/bits.h"
#include "../strided.h"

namespace edgec {
namespace portable {
#include "../generic/movement.h"
#include "../generic/where.h"
#include "../generic/gather_bits.h"
#include "../generic/scatter.h"
#include "../generic/topk.h"
#include "../generic/bitwise.h"
#include "../generic/table_q8.h"
}  // namespace portable
}  // namespace edgec
