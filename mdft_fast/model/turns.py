# SPDX-License-Identifier: Apache-2.0
"""One thread at a time: a model's merged weights come and go in modules that threads share."""

from __future__ import annotations

import threading
from typing import Any

from mdft_fast.errors import MdftError


class Turns:
    """A lock that a thread may take again, and who has λ for itself. A copy of it is free.

    Attributes:
        owner: the thread whose λ stands for the length of a ``with``; None: nobody's.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.owner: int | None = None

    def __enter__(self) -> Turns:
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __deepcopy__(self, memo: Any) -> Turns:
        return Turns()

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        return Turns, ()

    def check_owner(self) -> None:
        """Refuses another thread than the one that has λ for itself.

        Raises:
            MdftError: if there is one; to wait for it could be to wait for ever.
        """
        if self.owner not in (None, threading.get_ident()):
            raise MdftError(
                "meta-model: λ must be one for all threads, got a call while `using` holds in "
                "another thread; give each thread a model of its own, such as materialize()"
            )
