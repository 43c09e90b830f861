"""Fourier transforms against numpy in double."""

from __future__ import annotations

import numpy as np
import pytest

from edgec.ir.passes import Context
from edgec.native.lower import capabilities
from edgec.passes.lower.decompose import Decompose
from edgec.pipeline import run_passes
from tests.passes.harness import Array, evaluate, model, ops

RNG = np.random.default_rng(6)


def transformed(text: str, feeds: dict[str, Array], **weights: Array) -> Array:
    graph = run_passes(model(text, **weights), [Decompose()], Context(capabilities=capabilities())).model
    assert not {"DFT", "STFT"} & set(ops(graph))
    return evaluate(graph, feeds, "onnxruntime")["y"]


def pair(z: Array) -> Array:
    return np.stack([z.real, z.imag], axis=-1)


def close(found: Array, wanted: Array) -> None:
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("points", [9, 16, 400])
@pytest.mark.parametrize("complex_input", [False, True])
def test_dft(points: int, complex_input: bool) -> None:
    z = RNG.standard_normal((2, points, 3)) + (1j * RNG.standard_normal((2, points, 3)) if complex_input else 0)
    parts = 2 if complex_input else 1
    x = (pair(z) if complex_input else z[..., None]).astype(np.float32)
    text = f"g (float[2,{points},3,{parts}] x, int64 a) => (float[2,M,3,2] y) {{ y = DFT<inverse = %d>(x, , a) }}"
    close(transformed(text % 0, {"x": x}, a=np.array(1)), pair(np.fft.fft(z, axis=1)))
    if complex_input:
        close(transformed(text % 1, {"x": x}, a=np.array(1)), pair(np.fft.ifft(z, axis=1)))


@pytest.mark.parametrize("points", [9, 10])
def test_half_spectra(points: int) -> None:
    signal = RNG.standard_normal((2, points))
    text = f"g (float[2,{points},1] x) => (float[2,M,2] y) {{ y = DFT<onesided = 1>(x) }}"
    half = np.fft.rfft(signal)
    close(transformed(text, {"x": signal[..., None].astype(np.float32)}), pair(half))
    back = (f"g (float[2,{half.shape[1]},2] x, int64 n) => (float[2,M,1] y) {{"
            " y = DFT<onesided = 1, inverse = 1>(x, n) }")
    close(transformed(back, {"x": pair(half).astype(np.float32)}, n=np.array(points)), signal[..., None])


@pytest.mark.parametrize(("length", "keep"), [(7, 7), (16, 10)])
def test_dft_cuts_and_fills(length: int, keep: int) -> None:
    signal = RNG.standard_normal((1, 10))
    text = "g (float[1,10,1] x, int64 n) => (float[1,M,2] y) { y = DFT(x, n) }"
    wanted = pair(np.fft.fft(signal[:, :keep], n=length))
    close(transformed(text, {"x": signal[..., None].astype(np.float32)}, n=np.array(length)), wanted)


@pytest.mark.parametrize("onesided", [0, 1])
def test_stft(onesided: int) -> None:
    signal, window = RNG.standard_normal((2, 50)), np.hanning(16)
    text = ("g (float[2,50,1] x, int64 s, float[16] w) => (float[2,F,M,2] y) {"
            f" y = STFT<onesided = {onesided}>(x, s, w) }}")
    frames = np.stack([signal[:, i : i + 16] for i in range(0, 50 - 16 + 1, 5)], axis=1) * window
    wanted = pair(np.fft.rfft(frames) if onesided else np.fft.fft(frames))
    close(transformed(text, {"x": signal[..., None].astype(np.float32)}, s=np.array(5), w=window), wanted)
