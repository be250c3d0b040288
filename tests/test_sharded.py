"""Lanes over devices: eight CPU devices that JAX is told to show (conftest)."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
import pytest
from quick import QUICKLY

from stability.config import RunConfig
from stability.training.lanes import STEPS_PER_DISPATCH, Program, Programs
from stability.training.mesh import lane_mesh
from stability.typed import from_mapping

BATCH, TIME, VOCABULARY = 8, 8, 32
VALIDATION = np.random.default_rng(1).integers(0, VOCABULARY, (2, BATCH, TIME + 1), np.int32)
programs = Programs()
