"""The passes in the order in which they run; the whole order fits on one screen.

One pass, one file, one class. A new pass is a file, a test, and its place here.
"""

from __future__ import annotations

from edgec.ir.passes import Pass
from edgec.passes.compress.quantize import Quantize
from edgec.passes.lower.decompose import Decompose
from edgec.passes.lower.merge_siblings import MergeSiblings
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
    EliminateDead(),
)
COMPRESS: tuple[Pass, ...] = (
    Quantize(),
)
LOWER: tuple[Pass, ...] = (
    Decompose(),
    FoldConstants(),
    MergeSiblings(),
    EliminateDead(),
)
