// Every algorithm, written once over the vocabulary of simd/. Included once per instruction set, inside its namespace
// and target region: these headers have no include guards and include nothing.
#include "linear.h"
#include "conv2d.h"
#include "dwconv2d.h"
#include "pool2d.h"
#include "matmul.h"
#include "attention.h"
