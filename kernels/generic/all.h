// Every algorithm that gains from vectors, written once over the vocabulary of simd/, but for those of narrow.h.
// Included once per instruction set, inside its namespace and target region: these headers have no include guards and
// include nothing. Before them come lanes.h, what looks tables up (lut.h) where there is a shuffle of bytes, and the
// product in 16-bit integers (dot16.h) where that is faster than floats.
#include "gemm.h"
#include "linear.h"
#include "conv2d.h"
#include "conv2d_winograd.h"
#include "palette.h"
#include "bits.h"
#include "conv2d_bits.h"
#include "dwconv2d.h"
#include "mbconv2d.h"
#include "conv2d_q8.h"
#include "rnn.h"
#include "selective_scan.h"
#include "matmul.h"
#include "norm.h"
#include "attention.h"
