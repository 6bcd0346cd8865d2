# SPDX-License-Identifier: Apache-2.0
"""The report as a page: one file that shows a run in any browser and asks no network for anything.

Whatever a result holds may come from strangers, so every string of it is escaped, and the page's
own policy lets a browser run nothing but the script that is written here.
"""

from mdft_fast.report.html.render import page

__all__ = ["page"]
