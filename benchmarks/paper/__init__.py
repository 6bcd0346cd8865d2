# SPDX-License-Identifier: Apache-2.0
"""The paper's tables and figures, on any recipe: measured, shown, drawn."""

from benchmarks.paper import fig2, fig3, table1, table2, table3, variants
from benchmarks.paper.form import Item

ITEMS: dict[str, Item] = {
    "table1": table1.ITEM,
    "table2": table2.ITEM,
    "table3": table3.ITEM,
    "fig2": fig2.ITEM,
    "fig3": fig3.ITEM,
    "fig4": variants.FIG4,
    "fig5": variants.FIG5,
    "fig6": variants.FIG6,
}
