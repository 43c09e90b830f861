"""Solvers: codes and parameters for one weight matrix, with or without statistics of its inputs."""

from __future__ import annotations

from edgec.compress.solvers.matrix import Method as Method
from edgec.compress.solvers.matrix import Tuning as Tuning
from edgec.compress.solvers.matrix import quantize_matrix as quantize_matrix
from edgec.compress.solvers.palette import fit_tables as fit_tables
from edgec.compress.solvers.palette import quantize_palette as quantize_palette
from edgec.compress.solvers.stats import LinearStats as LinearStats
