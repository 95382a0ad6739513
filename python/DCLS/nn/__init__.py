"""The layers. Import them from ``DCLS``, or from the paths that DCLS 0.1.1 has."""

from DCLS.nn.builders import (
    ConstructKernel1d,
    ConstructKernel2_1d,
    ConstructKernel2d,
    ConstructKernel3_1d,
    ConstructKernel3_2d,
    ConstructKernel3d,
)
from DCLS.nn.conv import Dcls1d, Dcls2d, Dcls2dK1d, Dcls3d
from DCLS.nn.conv_nm import Dcls2_1d, Dcls3_1d, Dcls3_2d
from DCLS.nn.subclassing import _DclsN_Md, _DclsNd
from DCLS.nn.transposed import DclsTranspose1d, DclsTranspose2d, DclsTranspose3d

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
