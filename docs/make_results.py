# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of results into README.md and docs/results.md, from committed JSON alone.

    python docs/make_results.py            # rewrites what stands between the markers
    python docs/make_results.py --check    # changes nothing; status 1 if a page is out of date

Reads benchmarks/results/: real_pool.json, real_pool_paper.json and demo_pool.json ({"runs":
[result.json, ...]}),
kernels_cpu.json, step_cpu.json, kernels_cuda.json, step_cuda.json, memory_cpu.json,
scaling_cpu.json, data_cpu.json and pack_cpu.json (benchmarks/run.py), codec_accuracy.json
(benchmarks/codec_accuracy.py) and defaults.json (benchmarks/select_defaults.py). What is absent is
left out. Every number on the two pages that is a result stands between the markers.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
POOLS = {
    "real_pool": "Real pool: ViT-Tiny/16 and eight models fine-tuned on real images",
    "real_pool_paper": "Real pool, the paper's objective (Adam 0.01 cosine; stage 2 Adam 0.05)",
    "demo_pool": "Demo pool: what `make demo` trains and runs",
}
BENCHES = {
    "kernels_cpu": "Operators on the CPU",
    "step_cpu": "A whole step of stage 1 on the CPU",
    "kernels_cuda": "Operators on CUDA",
    "step_cuda": "A whole step of stage 1 on CUDA",
}
METHODS = {
    "pretrained": "pre-trained (λ = 0)",
    "task_arithmetic": "task arithmetic (λ = 0.3)",
    "meta": "meta-model, stage 1",
    "individual": "individual models",
    "control": "control: stage 2 without stage 1",
    "specialized": "specialized models, stage 2",
}
COMPARISONS = {
    "meta-task_arithmetic": "Meta-model less task arithmetic",
    "specialized-individual": "Specialized less individual models",
    "specialized-control": "Specialized less control",
}
OURS = "mdft_fast"
NO_RIVALS = (OURS, "floor", "teachers")  # our other modes, the bound, and what a run does once
WAYS = {
    "plain": "plain forward and backward of one model",
    "peers": "the peers' way: every task vector in fp32, autograd through the sum",
    "resident": "resident",
    "layerwise": "layerwise",
    "streamed": "streamed",
}


def read(folder: Path, name: str) -> Any:
    """Returns a committed result, or None where there is none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def table(header: Sequence[str], lines: Iterable[Sequence[object]], left: int = 1) -> str:
    """Returns a Markdown table; the first ``left`` columns are aligned left, the others right."""
    rule = [":--" if i < left else "--:" for i in range(len(header))]
    rows = [header, rule, *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


def mean(values: Iterable[float]) -> float:
    """Returns the mean of at least one number."""
    items = list(values)
    return math.fsum(items) / len(items)


def signed(share: float) -> str:
    """Returns ``+0.6`` for 0.006, in per cent; the minus is as wide as the plus."""
    return f"{100 * share:+.1f}".replace("-", "−")


def percent(shares: Sequence[float]) -> str:
    """Returns the mean in per cent, and the range where there are several numbers."""
    text = f"{100 * mean(shares):.1f}"
    if len(shares) > 1:
        text += f" ({100 * min(shares):.1f} to {100 * max(shares):.1f})"
    return text


def averages(runs: Sequence[Any]) -> dict[str, list[float]]:
    """Returns method -> mean accuracy over the tasks, one a run, where every run has it."""
    found = {m: [r["accuracy"][m] for r in runs if r["accuracy"].get(m)] for m in METHODS}
    return {
        method: [mean(by_task.values()) for by_task in values]
        for method, values in found.items()
        if len(values) == len(runs)
    }


def origin(facts: Any) -> str:
    """Returns where a result comes from: date, commit, device, threads, command."""
    date = str(facts.get("created") or facts.get("date") or "unknown date")[:10]
    commit = str(facts.get("commit") or "unknown")[:10]
    parts = [date, f"commit `{commit}`", str(facts.get("device", "unknown device"))]
    if "threads" in facts:
        parts.append(f"{facts['threads']} threads")
    if "versions" in facts:
        parts.append(f"torch {facts['versions'].get('torch', '?')}")
    if facts.get("busy"):
        parts.append("**measured while the machine was busy with other work**")
    if facts.get("command"):
        parts.append(f"`{facts['command']}`")
    return ", ".join(parts) + "."


def pool_summary(name: str, content: Any) -> Iterator[str]:
    """Gives a pool's averages and what they say, for the README."""
    runs = content["runs"]
    seeds = ", ".join(str(run["seed"]) for run in runs)
    how = f"preset `{runs[0]['preset']}`, seed {seeds}"
    yield f"**{POOLS[name]}**, average top-1 in per cent, {how}:"
    rows = [[METHODS[m], percent(v)] for m, v in averages(runs).items()]
    yield table(["", "mean over seeds (lowest to highest)" if len(runs) > 1 else "%"], rows)
    yield from differences(runs)


def differences(runs: Sequence[Any]) -> Iterator[str]:
    """Gives the paired comparisons that every run holds, one a seed."""
    for key, words in COMPARISONS.items():
        found = [run.get("comparisons", {}).get(key) for run in runs]
        if key == "specialized-individual" and not all(found):
            found = [run.get("intervals", {}).get("average") for run in runs]
        if all(found):
            listed = "; ".join(
                f"{signed(one['difference'])} [{signed(one['low'])}, {signed(one['high'])}]"
                for one in found
            )
            yield f"{words}, points with 95 % bootstrap interval, one a seed: {listed}."


def pool_details(name: str, content: Any) -> Iterator[str]:
    """Gives a pool's accuracies by task, for the page of results."""
    runs = content["runs"]
    first = runs[0]
    yield f"## {POOLS[name]}"
    methods = list(averages(runs))
    rows: list[Sequence[object]] = []
    for task in first["pool"]["tasks"]:
        values = [mean(run["accuracy"][m][task["name"]] for run in runs) for m in methods]
        rows.append([task["name"], task["classes"], *(f"{100 * v:.1f}" for v in values)])
    last = [f"**{100 * mean(v):.1f}**" for v in averages(runs).values()]
    rows.append(["**average**", "", *last])
    yield table(["task", "classes", *(METHODS[m] for m in methods)], rows)
    yield f"Top-1 in per cent, mean over {len(runs)} seed{'s' * (len(runs) > 1)}."
    yield from differences(runs)
    if "trainable" in first:
        yield f"Numbers learned (K · L): {first['trainable']:,}."
    if all(run.get("phases") for run in runs):
        names = [phase["name"] for phase in first["phases"]]
        rows = [
            [
                name,
                f"{mean(p['seconds'] for r in runs for p in r['phases'] if p['name'] == name):.1f}",
            ]
            for name in names
        ]
        yield table(["phase", "seconds, mean over seeds"], rows)
    yield f"From {origin(first | {'command': content.get('command')})}"


def bench_rows(results: Sequence[Any]) -> Iterator[list[object]]:
    """Gives a line a case: our time, our share of a copy's rate, the best other, the ratio."""
    for one in results:
        mine = one["contestants"][OURS]
        others = {n: c for n, c in one["contestants"].items() if not n.startswith(NO_RIVALS)}
        share = f"{100 * mine['share_of_copy']:.0f} %" if "share_of_copy" in mine else ""
        cells = [one["op"], one["case"], f"{mine['median_ms']:.4g}", share]
        if others:
            best = min(others, key=lambda n: others[n]["over_ours"])
            cells += [best, f"{others[best]['median_ms']:.4g}", f"{others[best]['over_ours']:.2f}"]
        else:
            cells += ["", "", ""]
        yield cells


def bench_details(name: str, content: Any) -> Iterator[str]:
    """Gives a benchmark's table: ours beside the strongest contestant."""
    yield f"## {BENCHES[name]}"
    header = ["operator", "case", "ours, ms", "of copy", "best other", "its ms", "its time / ours"]
    yield table(header, bench_rows(content["results"]), left=2)
    yield (
        "Medians; the ratio is the median of ratios within a round, above 1 where we are faster. "
        "Of copy: bytes that must be moved a second, as a share of what a plain copy reaches in "
        "the same rounds. The JSON has every contestant, quartiles and memory."
    )
    for one in content["results"]:
        if "floor: one plain model" in one["contestants"]:
            yield f"**{one['case']}**, {one['rounds']} rounds:"
            yield table(["contestant", "ms", "/ floor", "/ ours"], step_rows(one))
            left = one["does_not_work_here"].items()
            yield "".join(f"Left out: {name} ({why}). " for name, why in left).strip() or "All ran."
    yield f"From {origin(content)}"


def step_rows(one: Any) -> Iterator[list[object]]:
    """Gives a line a contestant, the fastest first."""
    contestants = one["contestants"]
    floor = contestants["floor: one plain model"]["median_ms"]
    for name, c in sorted(contestants.items(), key=lambda item: item[1]["median_ms"]):
        ratios = c["median_ms"] / floor, c["over_ours"]
        yield [name, f"{c['median_ms']:.4g}", *(f"{ratio:.2f}" for ratio in ratios)]


def memory_rows(content: Any) -> Iterator[list[object]]:
    """Gives a line a way to take a step."""
    for row in content["results"]:
        plan = f"{row['predicted_mb']:,.0f}" if "predicted_mb" in row else ""
        if "limit_mb" in row:
            plan = f"limit {row['limit_mb']:,.0f}"
        took = f"{row['seconds']:.1f}" if "seconds" in row else "out of memory"
        cells = [row["model"], WAYS[row["way"]], row["codec"], f"{row['anonymous_mb']:,.0f}"]
        yield [*cells, f"{row['mapped_mb']:,.0f}", plan, took]


def memory_details(content: Any) -> Iterator[str]:
    """Gives what a step takes by mode and codec."""
    yield "## Memory of a step on the CPU"
    header = ["model", "way", "codec", "MB", "mapped, MB", "plan said", "s"]
    yield table(header, memory_rows(content), left=3)
    first = content["results"][0]
    yield (
        f"{first['samples']} images, K = 8, fp32, activations of every block computed again, for "
        "all alike. MB: the peak of anonymous memory above the bare process, watched from another; "
        "mapped: pages of files that the system can take back. Seconds: one step, not a race. The "
        "last rows ran under a hard limit (RLIMIT_DATA) beyond the open pool."
    )
    yield f"From {origin(content)}"


def memory_summary(content: Any) -> str:
    """Returns one sentence on the largest model."""
    rows = [r for r in content["results"] if r["model"] == content["results"][-1]["model"]]
    rows = [r for r in rows if "limit_mb" not in r]
    gb = {(r["way"], r["codec"]): r["anonymous_mb"] / 1e3 for r in rows}
    ours = min((r for r in rows if r["way"] in ("layerwise", "streamed")),
               key=lambda r: r["anonymous_mb"])  # fmt: skip
    return (
        f"**Memory of a step on the CPU**, {rows[0]['model']}, K = 8, {rows[0]['samples']} images, "
        f"checkpointing everywhere: {ours['way']} {ours['anonymous_mb'] / 1e3:.2f} GB, resident "
        f"{gb['resident', 'fp32']:.2f} GB, one plain model's forward and backward "
        f"{gb['plain', 'fp32']:.2f} GB, the peers' way {gb['peers', 'fp32']:.2f} GB."
    )


def scaling_details(content: Any) -> Iterator[str]:
    """Gives what the operators cost against K."""
    yield "## Cost against K and codec"
    yield "![merge and merge_dots against K](../benchmarks/results/scaling_cpu.png)"
    rows = [
        [r["K"], r["codec"], *(f"{r['ms'][n]:.2f}" for n in ("merge", "merge_dots")),
         *(f"{100 * r['share_of_copy'][n]:.0f} %" for n in ("merge", "merge_dots"))]
        for r in content["results"]
    ]  # fmt: skip
    header = ["K", "codec", "merge, ms", "merge_dots, ms", "of copy", "of copy"]
    yield table(header, rows, left=2)
    yield f"One block of ViT-L/14, 12.6 M elements. From {origin(content)}"


def data_details(content: Any) -> Iterator[str]:
    """Gives what loading gives beside what an encoder takes."""
    yield "## Loading of images on the CPU"
    rates = list(content["results"][0]["images_per_s"])
    lines = [
        [r["case"], r["threads"], *(f"{r['images_per_s'][n]:,.0f}" for n in rates),
         f"{r['batches_over_forward']:.0f}", f"{r['load_average']:.1f}"]
        for r in content["results"]
    ]  # fmt: skip
    yield table(["encoder", "threads", *rates, "batches / forward", "load"], lines)
    first = content["results"][0]
    yield (
        f"Images a second; {first['images']:,} files just written, batches of {first['batch']}. "
        "Decoding fills the cache, once for all runs; opening compares every cached image with its "
        "digest, once a process; cached batches are what every step reads: gathered, made floats, "
        "normalized. The encoder alone, nothing merged, is the least that a step takes. Load: of "
        "the machine, other work included, over the last minute."
    )
    yield f"From {origin(content)}"


def pack_details(content: Any) -> Iterator[str]:
    """Gives how fast a pool is packed, and in what memory."""
    yield "## Packing on the CPU"
    lines = [
        [r["case"], name, f"{way['s']:.1f}", f"{way['over_copy']:.2f}", f"{way['written_mb']:,.0f}",
         f"{way['anonymous_mb'] / r['model_mb']:.2f}"]
        for r in content["results"]
        for name, way in r["ways"].items()
    ]  # fmt: skip
    header = ["case", "way", "s", "/ copy", "MB written", "memory, models"]
    yield table(header, lines, left=2)
    yield (
        "Against copying the same files, turn by turn, all of it on the disk at the end (fsync); "
        "medians, and of ratios within a round. Every byte is read, compared with the base, "
        "encoded, hashed twice and written. Memory: the peak of anonymous memory in sizes of one "
        "model in float32."
    )
    yield f"From {origin(content)}"


def codec_details(content: Any) -> Iterator[str]:
    """Gives what a codec of the task vectors costs in accuracy."""
    yield "## Accuracy by codec of the task vectors"
    lines = []
    for codec in dict.fromkeys(row["codec"] for row in content["rows"]):
        rows = [row for row in content["rows"] if row["codec"] == codec]
        shares = [percent([r[n] for r in rows]) for n in ("meta", "specialized")]
        own = f"{100 * rows[0]['individual']:.2f}"
        agreement = f"{100 * rows[0]['agreement']:.2f}"
        lines.append([codec, f"{rows[0]['vectors_mb']:.1f}", agreement, own, *shares, len(rows)])
    header = [
        "codec",
        "task vectors, MB",
        "same answers",
        "individual",
        "stage 1",
        "stage 2",
        "seeds",
    ]
    yield table(header, lines)
    yield (
        "The real pool of the first section, preset `default`; in per cent, mean over seeds "
        "(lowest to highest). Same answers: how often a packed pool's own model (λ = 1 at its "
        "task) names the class that the original names, on the test images, without labels; "
        "individual: its accuracy. Both stages learned on the packed task vectors, teachers "
        "included."
    )
    yield f"From {origin(content)}"


def defaults_details(content: Any) -> Iterator[str]:
    """Gives the candidates for ``preset: default``, ranked without labels."""
    yield "## How the defaults were chosen"
    rows = [
        [c["objective"], c["lr"], c["schedule"], f"{c['share']:.4f}"] for c in content["construct"]
    ]
    yield "Stage 1, best first:"
    yield table(["objective", "lr", "schedule", "share"], rows, left=3)
    yield "Stage 2, best first:"
    rows = [[c["lr"], c["schedule"], f"{c['share']:.4f}"] for c in content["specialize"]]
    yield table(["lr", "schedule", "share"], rows, left=2)
    yield f"Share: {content['measure']}. From {origin(content)}"


def readme_block(folder: Path = RESULTS) -> str:
    """Returns what stands between the markers of README.md."""
    parts: list[str] = []
    for name in POOLS:
        if content := read(folder, name):
            parts += pool_summary(name, content)
    for name in BENCHES:
        if content := read(folder, name):
            rows = list(bench_rows(content["results"]))
            faster = sum(float(str(row[-1])) > 1 for row in rows if row[-1])
            busy = " The machine was busy with other work then." if content.get("busy") else ""
            yes = f"faster than the best other contestant in {faster} of {len(rows)} cases"
            parts.append(f"**{BENCHES[name]}**: {yes}, device {content.get('device')}.{busy}")
    if content := read(folder, "memory_cpu"):
        parts.append(memory_summary(content))
    if parts:
        parts.append(
            "By task, with dates, commits and commands: [docs/results.md](docs/results.md)."
        )
    return "\n\n".join(parts or ["No result is committed yet."])


def page_block(folder: Path = RESULTS) -> str:
    """Returns what stands between the markers of docs/results.md."""
    parts: list[str] = []
    for name in POOLS:
        if content := read(folder, name):
            parts += pool_details(name, content)
    for name in BENCHES:
        if content := read(folder, name):
            parts += bench_details(name, content)
    if content := read(folder, "memory_cpu"):
        parts += memory_details(content)
    if content := read(folder, "scaling_cpu"):
        parts += scaling_details(content)
    if content := read(folder, "data_cpu"):
        parts += data_details(content)
    if content := read(folder, "pack_cpu"):
        parts += pack_details(content)
    if content := read(folder, "codec_accuracy"):
        parts += codec_details(content)
    if content := read(folder, "defaults"):
        parts += defaults_details(content)
    return "\n\n".join(parts or ["No result is committed yet."])


def replaced(text: str, block: str) -> str:
    """Returns a page with another block between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise ValueError(f"page: must hold {BEGIN} and {END}, got none")
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def main(argv: Sequence[str]) -> int:
    """Rewrites both pages, or says which one is out of date."""
    status = 0
    for path, block in (
        (ROOT / "README.md", readme_block()),
        (ROOT / "docs/results.md", page_block()),
    ):
        old = path.read_text(encoding="utf-8")
        new = replaced(old, block)
        if new == old:
            continue
        if "--check" in argv:
            sys.stderr.write(f"{path.name} is out of date: python docs/make_results.py\n")
            status = 1
        else:
            path.write_text(new, encoding="utf-8")
            sys.stdout.write(f"wrote {path.name}\n")
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
