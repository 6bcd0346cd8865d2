# SPDX-License-Identifier: Apache-2.0
"""mdft_fast: turn a pool of fine-tuned models into one better model, without labels.

Operators (usable alone): merge, merge_tensors, merge_dots, debiased_entropy_loss.
The whole way: Pool, Task -> MetaModel -> construct, specialize -> evaluate, CoefficientCard, load;
or all of it at once: run(recipe).

A name is loaded, and torch with it, when it is first asked for; ``__init__.pyi`` says the same to
type checkers.
"""

from mdft_fast.late_imports import late_names
from mdft_fast.version import __version__ as __version__

# The first try was undone: `run` and `evaluate` were modules too, so importing one put the module
# in the function's place. Now no public name is a module's, and a test keeps it so.
__getattr__, __dir__, __all__ = late_names(
    __name__,
    {
        "mdft_fast.app.forecast": ("MemoryPlan", "plan"),
        "mdft_fast.app.running": ("run",),
        "mdft_fast.arena": ("Layout", "TaskVectors"),
        "mdft_fast.cards": ("CoefficientCard", "load", "save_model"),
        "mdft_fast.data": ("NpzSource", "Task"),
        "mdft_fast.errors": ("MdftError", "MdftFallbackWarning"),
        "mdft_fast.evaluation": ("Evaluation", "evaluate"),
        "mdft_fast.learning": (
            *("ConstructConfig", "OptimizerConfig", "RunResult", "SpecializeConfig"),
            *("construct", "specialize"),
        ),
        "mdft_fast.methods": ("Start",),
        "mdft_fast.model": ("MetaModel",),
        "mdft_fast.ops": (
            *("DebiasedEntropyFunction", "MergeFunction", "debiased_entropy_loss", "kernels"),
            *("merge", "merge_dots", "merge_tensors"),
        ),
        "mdft_fast.pool": ("Head", "Pool"),
    },
)
