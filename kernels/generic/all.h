// Every algorithm, written once over the vocabulary of simd/. Included once per instruction set, inside its namespace
// and target region: these headers have no include guards and include nothing.
#include "gemm.h"
#include "linear.h"
#include "kv_write.h"
#include "norm.h"
#include "rope.h"
#include "elementwise.h"
#include "softmax.h"
#include "reduce.h"
#include "gather.h"
#include "movement.h"
