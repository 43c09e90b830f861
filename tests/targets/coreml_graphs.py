"""Small graphs that together hold every operator that the Core ML backend can emit."""

from __future__ import annotations

from typing import Any

# name -> (ONNX text, constants by name: their values, or a shape to fill). Symbol n is 1 to 16.
GRAPHS: dict[str, tuple[str, dict[str, Any]]] = {
    "bounded": (
        """
        g (float[2,3] x) => (float[2,3] y) { a = Tanh (x) b = Acos (a) c = Asin (a) d = Atan (b) e = Add (c,
        d) f = Cos (e) h = Sin (e) i = Mul (f, h) j = Tan (i) y = Erf (j) }
        """,
        {},
    ),
    "growing": (
        """
        g (float[2,3] x) => (float[2,3] y) { a = Cosh (x) b = Sinh (x) c = Exp (x) d = Sub (a, b) e = Mul
        (d, c) f = Abs (e) h = Sqrt (f) i = Log (h) y = Add (i, c) }
        """,
        {},
    ),
    "steps": (
        """
        g (float[2,3] x) => (float[2,3] y) { t = Constant <value = float {3.0}> () s = Mul (x, t) a = Ceil
        (s) b = Floor (s) c = Round (s) d = Sign (s) e = Add (a, b) f = Add (c, d) y = Sub (e, f) }
        """,
        {},
    ),
    "bent": (
        """
        g (float[2,3] x) => (float[2,3] y) { a = Relu (x) b = Sigmoid (x) c = Softplus (x) d = Softsign (x)
        e = Elu <alpha = 0.7> (x) f = Gelu (x) h = Gelu <approximate = "tanh"> (x) i = HardSigmoid <alpha =
        0.3, beta = 0.4> (x) j = HardSwish (x) k = LeakyRelu <alpha = 0.2> (x) l = Swish (x) m = Swish
        <alpha = 1.7> (x) n = Add (a, b) o = Add (c, d) p = Add (e, f) q = Add (h, i) r = Add (j, k) s = Add
        (l, m) t = Add (n, o) u = Add (p, q) v = Add (r, s) w = Add (t, u) z = Neg (v) y = Sub (w, z) }
        """,
        {},
    ),
    "clipped": (
        """
        g (float[2,3] x, float low, float high) => (float[2,3] y) { a = Clip (x, low, high) b = Clip (x,
        low) c = Reciprocal (b) y = Add (a, c) }
        """,
        {"low": 0.25, "high": 0.75},
    ),
    "compared": (
        """
        g (float[2,3] x, float[2,3] z) => (float[2,3] y, bool[2,3] q) { a = Greater (x, z) b = Less (x, z) c
        = GreaterOrEqual (x, z) d = LessOrEqual (x, z) e = Or (a, b) f = And (c, d) h = Xor (e, f) i = Not
        (a) q = And (h, i) j = Max (x, z) k = Min (x, z) y = Where (q, j, k) }
        """,
        {},
    ),
    "powers": (
        """
        g (float[2,3] x) => (float[2,3] y) { a = Abs (x) two = Constant <value = float {1.5}> () b = Pow (a,
        two) y = Div (b, two) }
        """,
        {},
    ),
    "integers": (
        """
        g (int64[4] x, int64[4] z) => (int64[4] y, bool[4] q, float[4] f) { a = Div (x, z) m = Mod (x, z) n
        = Neg (m) q = Equal (a, n) b = Add (a, n) y = Sub (b, m) f = Cast <to = 1> (y) }
        """,
        {},
    ),
    "reduced": (
        """
        g (float[2,3,4] x, int64[1] axis, int64[2] both) => (float[2,1,4] y, float[4] z, int64[2,1,4] p,
        int64[2,4] q) { a = ReduceMax (x, axis) b = ReduceMin (x, axis) c = ReduceSum (x, axis) d = Add (a,
        b) y = Add (c, d) e = ReduceMean <keepdims = 0> (x, both) f = ReduceProd <keepdims = 0> (x, both) z
        = Add (e, f) p = ArgMax <axis = 1> (x) q = ArgMin <axis = 1, keepdims = 0> (x) }
        """,
        {"axis": [1], "both": [0, 1]},
    ),
    "pooled": (
        """
        g (float[1,3,9,8] x) => (float[1,3,5,4] y, float[1,3,4,4] z, float[1,3,1,1] w) { a = MaxPool
        <kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,0]> (x) b = AveragePool <kernel_shape = [3,3],
        strides = [2,2], pads = [1,1,1,0]> (x) y = Add (a, b) z = AveragePool <kernel_shape = [2,2], strides
        = [2,2], count_include_pad = 1> (x) c = GlobalAveragePool (x) d = GlobalMaxPool (x) w = Mul (c, d) }
        """,
        {},
    ),
    "convolved": (
        """
        g (float[1,4,7,7] x, float[6,2,3,3] w, float[6] b, float[6,6,1,1] v) => (float[1,6,4,4] y) { a =
        Conv <group = 2, strides = [2,2], pads = [1,1,1,1]> (x, w, b) y = Conv <auto_pad = "SAME_UPPER"> (a,
        v) }
        """,
        {"w": (6, 2, 3, 3), "b": (6,), "v": (6, 6, 1, 1)},
    ),
    "resized": (
        """
        g (float[1,2,3,4] x, float[4] s, int64[4] t) => (float[1,2,6,8] y, float[1,2,5,7] z) { y = Resize
        <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (x, , s) z
        = Resize <mode = "linear"> (x, , , t) }
        """,
        {"s": [1.0, 1.0, 2.0, 2.0], "t": [1, 2, 5, 7]},
    ),
    "padded": (
        """
        g (float[1,2,3,4] x, int64[8] p) => (float[1,2,6,6] y, float[1,2,6,6] z) { y = Pad (x, p) z = Pad
        <mode = "reflect"> (x, p) }
        """,
        {"p": [0, 0, 1, 2, 0, 0, 2, 0]},
    ),
    "moved": (
        """
        g (float[2,3,4] x, int64[3] shape, int64[1] one, int64[2] sizes) => (float[4,3,2] y, float[2,2,6] z)
        { t = Transpose <perm = [2,1,0]> (x) u = Unsqueeze (t, one) y = Squeeze (u, one) r = Reshape (x,
        shape) a, b = Split <axis = 2> (r, sizes) z = Concat <axis = 2> (b, a) }
        """,
        {"shape": [2, 2, -1], "one": [1], "sizes": [2, 4]},
    ),
    "cut": (
        """
        g (float[4,6] x, int64[2] s, int64[2] e, int64[2] axes, int64[2] steps) => (float[2,3] y) { y =
        Slice (x, s, e, axes, steps) }
        """,
        {"s": [-1, 1], "e": [-9223372036854775807, 9223372036854775807], "axes": [0, 1], "steps": [-2, 2]},
    ),
    "chosen": (
        """
        g (float[4,6] x, int64[2] i, int64[1] k) => (float[2,6] y, float[4,2] v, int64[4,2] p) { y = Gather
        (x, i) v, p = TopK (x, k) }
        """,
        {"i": [3, 0], "k": [2]},
    ),
    "repeated": (
        """
        g (float[1,3] x, int64[3] shape, int64[2] reps, int64[1] zero) => (float[2,2,3] y, float[2,6] z,
        float[3] q) { y = Expand (x, shape) z = Tile (x, reps) q = Squeeze (x, zero) }
        """,
        {"shape": [2, 2, 3], "reps": [2, 2], "zero": [0]},
    ),
    "normed": (
        """
        g (float[2,3,8] x, float[8] g, float[8] b) => (float[2,3,8] y, float[2,3,8] z) { a =
        LayerNormalization (x, g, b) y = Softmax <axis = -1> (a) z = RMSNormalization (x, g) }
        """,
        {"g": (8,), "b": (8,)},
    ),
    "multiplied": (
        """
        g (float[2,3,8] x, float[5,8] w, float[5] b, float[6,5] v, float[6] c) => (float[2,3,5] y,
        float[6,6] z, float[2,3,3] s, float[1,2,3,5] q) { t = Transpose <perm = [1,0]> (w) m = MatMul (x, t)
        y = Add (m, b) shape = Constant <value = int64[2] {6, 5}> () r = Reshape (y, shape) z = Gemm <transB
        = 1> (r, v, c) u = Transpose <perm = [0,2,1]> (x) s = MatMul (x, u) zero = Constant <value =
        int64[1] {0}> () x4 = Unsqueeze (x, zero) q = MatMul (x4, t) }
        """,
        {"w": (5, 8), "b": (5,), "v": (6, 5), "c": (6,)},
    ),
    "flexible": (
        """
        g (float[1,n,4] x) => (float[1,m,2] y, float[1,n,4] e, bool[n] f) { s = Shape (x) i = Constant
        <value = int64 {1}> () n1 = Shape <start = 1, end = 2> (x) z = Constant <value = int64 {0}> () r =
        Constant <value = int64[3] {0, -1, 2}> () y = Reshape (x, r) zero = Constant <value = float {0.5}>
        () full = Expand (zero, s) e = Add (x, full) n0 = Gather (s, i) c = Range (z, n0, i) h = Constant
        <value = int64 {2}> () f = Less (c, h) }
        """,
        {},
    ),
}
