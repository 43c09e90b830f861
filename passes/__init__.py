"""The passes in the order in which they run; the whole order fits on one screen.

One pass, one file, one class. A new pass is a file, a test, and its place here.
"""

from __future__ import annotations

from edgec.ir.passes import Pass
from edgec.passes.compress.correct_bias import CorrectBias
from edgec.passes.compress.decouple_conv import DecoupleConv
from edgec.passes.compress.equalize import Equalize
from edgec.passes.compress.quantize import Quantize
from edgec.passes.compress.quantize_static import QuantizeStatic
from edgec.passes.lower.decompose import Decompose
from edgec.passes.lower.dense_weights import DenseWeights
from edgec.passes.lower.gather_bits import GatherBits
from edgec.passes.lower.linear_bits import LinearBits
from edgec.passes.lower.merge_siblings import MergeSiblings
from edgec.passes.lower.narrow_weights import NarrowWeights
from edgec.passes.lower.ort_gather_block import OrtGatherBlock
from edgec.passes.lower.ort_matmul_nbits import OrtMatmulNbits
from edgec.passes.lower.ort_unpack import OrtUnpack
from edgec.passes.normalize.eliminate_dead import EliminateDead
from edgec.passes.normalize.fold_affine import FoldAffine
from edgec.passes.normalize.fold_bn import FoldBN
from edgec.passes.normalize.fold_constants import FoldConstants
from edgec.passes.normalize.fuse_activations import FuseActivations
from edgec.passes.normalize.fuse_attention import FuseAttention
from edgec.passes.normalize.fuse_group_norm import FuseGroupNorm
from edgec.passes.normalize.fuse_norms import FuseNorms
from edgec.passes.normalize.fuse_rotary import FuseRotary
from edgec.passes.normalize.inline_functions import InlineFunctions
from edgec.passes.normalize.merge_branches import MergeBranches
from edgec.passes.normalize.merge_linear import MergeLinear
from edgec.passes.normalize.merge_trunks import MergeTrunks
from edgec.passes.normalize.normalize_linear import NormalizeLinear
from edgec.passes.normalize.static_kv import StaticKV

NORMALIZE: tuple[Pass, ...] = (
    InlineFunctions(),
    FoldConstants(),
    EliminateDead(),
    FoldBN(),
    MergeBranches(),
    FuseActivations(),
    FuseGroupNorm(),
    FuseNorms(),
    FuseRotary(),
    StaticKV(),
    FuseAttention(),
    FoldConstants(),
    FoldAffine(),
    NormalizeLinear(),
    MergeLinear(),
    MergeTrunks(),
    EliminateDead(),
)
COMPRESS: tuple[Pass, ...] = (
    DecoupleConv(),
    Quantize(),
    Equalize(),
    CorrectBias(),
    QuantizeStatic(),
)
LOWER: tuple[Pass, ...] = (
    Decompose(),
    FoldConstants(),
    MergeSiblings(),
    EliminateDead(),
)
LOWER_ORT: tuple[Pass, ...] = (
    LinearBits(),
    GatherBits(),
    OrtMatmulNbits(),
    OrtGatherBlock(),
    OrtUnpack(),
    NarrowWeights(),
    Decompose(),
    FoldConstants(),
    EliminateDead(),
)
# Siblings stay apart: Core ML would put their weights together at run time.
LOWER_COREML: tuple[Pass, ...] = (
    Decompose(),
    FoldConstants(),
    EliminateDead(),
)
LOWER_TVM: tuple[Pass, ...] = (
    LinearBits(),
    GatherBits(),
    DenseWeights(),
    Decompose(),
    FoldConstants(),
    EliminateDead(),
)
