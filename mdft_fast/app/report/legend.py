# SPDX-License-Identifier: Apache-2.0
"""The report's own words, explained once, where a reader first meets them."""

from __future__ import annotations

from mdft_fast.app.report.schema import Method, Result

_METHODS: dict[Method, tuple[str, str]] = {
    "task_arithmetic": ("Task arithmetic", "λ = 0.3 everywhere; nothing is learned."),
    "meta": ("Meta-model", "stage 1: one model for all tasks; its λ is learned without labels."),
    "individual": ("Individual", "the fine-tuned models of the pool, one a task: λ = e_k."),
    "specialized": (
        "Specialized",
        "stage 2: one model a task; λ moves from the meta-model's towards e_k in a few steps.",
    ),
    "control": (
        "Control",
        "stage 2 from task arithmetic, without stage 1: what stage 1 adds to stage 2 is the "
        "difference to it.",
    ),
}


def legend(result: Result) -> list[tuple[str, str]]:
    """Returns each word that the report uses, and what it means."""
    return [
        (
            "λ",
            "how much of each fine-tuned model's change to the base goes into each tensor; all "
            "that is learned. At λ = 0 there is the pre-trained base.",
        ),
        (
            "e_k",
            "the λ that is 1 for task k and 0 for the others: task k's own fine-tuned model, its "
            "teacher.",
        ),
        *(words for method, words in _METHODS.items() if method in result["accuracy"]),
    ]
