"""The cpu backend: fused kernels for the processor's vector units, compiled by numba at first use and kept on disk.

numba brings its own compiler (LLVM) as a wheel, so nothing is needed on the user's machine.
"""

from DiffDRRCore.rendering.backends.cpu.kernels import CpuKernels

KERNELS = CpuKernels()

__all__ = ["KERNELS"]
