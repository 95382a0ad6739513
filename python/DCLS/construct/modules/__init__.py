"""Convolutions that build their dense kernel from weights and learnable positions."""

from DCLS.construct.modules.base import _DclsN_Md, _DclsNd
from DCLS.construct.modules.construct_kernel import (
    ConstructKernel1d,
    ConstructKernel2_1d,
    ConstructKernel2d,
    ConstructKernel3_1d,
    ConstructKernel3_2d,
    ConstructKernel3d,
)
from DCLS.construct.modules.conv import Dcls1d, Dcls2d, Dcls2dK1d, Dcls3d
from DCLS.construct.modules.conv_nm import Dcls2_1d, Dcls3_1d, Dcls3_2d
from DCLS.construct.modules.transposed import DclsTranspose1d, DclsTranspose2d, DclsTranspose3d

__all__ = [
    "ConstructKernel1d",
    "ConstructKernel2_1d",
    "ConstructKernel2d",
    "ConstructKernel3_1d",
    "ConstructKernel3_2d",
    "ConstructKernel3d",
    "Dcls1d",
    "Dcls2_1d",
    "Dcls2d",
    "Dcls2dK1d",
    "Dcls3_1d",
    "Dcls3_2d",
    "Dcls3d",
    "DclsTranspose1d",
    "DclsTranspose2d",
    "DclsTranspose3d",
    "_DclsN_Md",
    "_DclsNd",
]
