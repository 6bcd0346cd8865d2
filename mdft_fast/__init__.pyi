# SPDX-License-Identifier: Apache-2.0
from mdft_fast.app.forecast import MemoryPlan as MemoryPlan
from mdft_fast.app.forecast import plan as plan
from mdft_fast.app.running import run as run
from mdft_fast.arena import Layout as Layout
from mdft_fast.arena import TaskVectors as TaskVectors
from mdft_fast.cards import CoefficientCard as CoefficientCard
from mdft_fast.cards import load as load
from mdft_fast.cards import save_model as save_model
from mdft_fast.data import NpzSource as NpzSource
from mdft_fast.data import Task as Task
from mdft_fast.errors import MdftError as MdftError
from mdft_fast.errors import MdftFallbackWarning as MdftFallbackWarning
from mdft_fast.evaluation import Evaluation as Evaluation
from mdft_fast.evaluation import evaluate as evaluate
from mdft_fast.learning import ConstructConfig as ConstructConfig
from mdft_fast.learning import OptimizerConfig as OptimizerConfig
from mdft_fast.learning import RunResult as RunResult
from mdft_fast.learning import SpecializeConfig as SpecializeConfig
from mdft_fast.learning import construct as construct
from mdft_fast.learning import specialize as specialize
from mdft_fast.model import MetaModel as MetaModel
from mdft_fast.ops import DebiasedEntropyFunction as DebiasedEntropyFunction
from mdft_fast.ops import MergeFunction as MergeFunction
from mdft_fast.ops import debiased_entropy_loss as debiased_entropy_loss
from mdft_fast.ops import kernels as kernels
from mdft_fast.ops import merge as merge
from mdft_fast.ops import merge_dots as merge_dots
from mdft_fast.ops import merge_tensors as merge_tensors
from mdft_fast.pool import Head as Head
from mdft_fast.pool import Pool as Pool

__version__: str
