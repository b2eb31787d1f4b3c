"""What stored values mean: the definition of decoding, in numpy. The trainer's torch form equals it to 1e-6."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def decode(values: NDArray[Any]) -> NDArray[np.float32]:
    """float32 features of stored `values`; what is missing is NaN in both."""
    return values.astype(np.float32)
