"""Settings of a run: the public names of `training.settings`."""

from .training.settings import (
    BatchSettings as BatchSettings,
)
from .training.settings import (
    ClassifierSettings as ClassifierSettings,
)
from .training.settings import (
    CompanionMemory as CompanionMemory,
)
from .training.settings import (
    DexmlBatches as DexmlBatches,
)
from .training.settings import (
    DexmlLoss as DexmlLoss,
)
from .training.settings import (
    DexmlSettings as DexmlSettings,
)
from .training.settings import (
    EncoderSettings as EncoderSettings,
)
from .training.settings import (
    FitSettings as FitSettings,
)
from .training.settings import (
    HeadSettings as HeadSettings,
)
from .training.settings import (
    MemorySettings as MemorySettings,
)
from .training.settings import (
    MiningSettings as MiningSettings,
)
from .training.settings import (
    OptionalMemory as OptionalMemory,
)
from .training.settings import (
    RaexmcBatches as RaexmcBatches,
)
from .training.settings import (
    RaexmcFit as RaexmcFit,
)
from .training.settings import (
    RaexmcLoss as RaexmcLoss,
)
from .training.settings import (
    RaexmcMining as RaexmcMining,
)
from .training.settings import (
    RaexmcSettings as RaexmcSettings,
)
from .training.settings import (
    RunSettings as RunSettings,
)
from .training.settings import (
    UnidecBatches as UnidecBatches,
)
from .training.settings import (
    UnidecLoss as UnidecLoss,
)
from .training.settings import (
    UnidecMining as UnidecMining,
)
from .training.settings import (
    UnidecSettings as UnidecSettings,
)
