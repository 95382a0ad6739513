"""Writes ``docs/claims.md`` from ``benchmarks/results/claims-*-cpu.json``.

    python docs/make_claims.py           # writes the page
    python docs/make_claims.py --check   # exit status 1 if the page is not current

Every number of the page, and every word on who won, comes out of these files.
``benchmarks/claims.py`` writes them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from make_performance import NOT_MEASURED, RESULTS, ROOT, differs, origin_rows
from performance_sections import Report, markdown, paragraph

import claims  # isort: skip  # found through make_performance
import harness  # isort: skip
from harness import Row  # isort: skip

PAGE = ROOT / "docs" / "claims.md"
WORDS = {
    "learned": "learned, gauss",
    "fixed": "fixed, regular",
    "v1": "learned, v1",
    "random": "fixed, random",
    "none": "no delays",
    "plain": "plain convolutions",
    claims.ROUNDED: "learned, rounded",
}
HOLDS, OPEN, REVERSED = "holds", "open", "**the other way round**"
SENTENCES = {HOLDS: "It holds on", OPEN: "It is open on", REVERSED: f"It is {REVERSED} on"}
HEAD = """\
# The papers in miniature

<!-- Written by docs/make_claims.py from benchmarks/results: change those. -->

Do the claims of the papers hold on small tasks that need no download? Two networks at a time are
compared, on the tasks of `dcls demo`:

| task | data |
|---|---|
| `pixels` | scikit-learn's handwritten digits, one pixel a step |
| `delays` | spoken vowels of nine speakers (JapaneseVowels) |
| `signals` | direction of a sound; this data is *generated* |
| `digits` | scikit-learn's handwritten digits, as images |

- Both networks have as many parameters, to within a few in a hundred, and the first one never has
  the most. A learned position counts as a parameter. Networks without delays have more neurons.
- Each network takes the learning rate out of three that is best on validation examples, with a
  seed of its own. Then it is trained from each of the other seeds, and meets the test examples
  once.
- A difference is the mean over the seeds, in points of a hundred, with the 95 % interval of
  Student's t. It says how much trainings differ. It does not say what other test examples give.
- A claim *holds* if the whole interval is above 0. It is *open* if 0 is inside.

These are small networks, trained for seconds. They say little of large ones.
[The README](../README.md) has the results of the demo, at one rate for all networks of a task.

```sh
pip install ".[demo,bench]"
python benchmarks/claims.py --threads 1
```
"""


def verdict(row: Row) -> str:
    """What a comparison says of its claim."""
    return HOLDS if row["low"] > 0 else REVERSED if row["high"] < 0 else OPEN


def on_which_tasks(rows: Sequence[Row]) -> str:
    """Where a claim holds, and where it does not, in words."""
    tasks = {
        word: ", ".join(f"`{row['task']}`" for row in rows if verdict(row) == word)
        for word in SENTENCES
    }
    return " ".join(f"{SENTENCES[word]} {names}." for word, names in tasks.items() if names)


def claim_lines(rows: Sequence[Row]) -> list[str]:
    """How many claims hold, and a table for each."""
    found = claims.compared(rows)
    counts = {word: sum(verdict(row) == word for row in found) for word in (HOLDS, OPEN, REVERSED)}
    lines = paragraph(
        f"Of {len(found)} comparisons the claim holds in {counts[HOLDS]}, is open in "
        f"{counts[OPEN]}, and in {counts[REVERSED]} it is {REVERSED}."
    )
    for claim in claims.CLAIMS:
        mine = harness.select(found, {"paper": claim.paper, "claim": claim.text})
        if not mine:
            continue
        paper = f"[arXiv {claim.paper}](https://arxiv.org/abs/{claim.paper})"
        lines += [f"### {claim.text}", "", *paragraph(f"{paper}. {on_which_tasks(mine)}")]
        lines += markdown(
            [
                {
                    "task": f"`{row['task']}`",
                    f"{WORDS[claim.better]} (%)": f"{row['better']:.1f}",
                    f"{WORDS[claim.worse]} (%)": f"{row['worse']:.1f}",
                    "difference": f"{row['difference']:+.1f}",
                    "95 % interval": f"{row['low']:+.1f} to {row['high']:+.1f}",
                    "ahead in": f"{row['wins']} of {row['seeds']} seeds",
                    "the claim": verdict(row),
                }
                for row in mine
            ]
        )
    return lines


def network_lines(rows: Sequence[Row]) -> list[str]:
    """A table of all networks, and what rounding does to them."""
    table, means = [], {}
    for task, network in dict.fromkeys((row["task"], row["network"]) for row in rows):
        mine = harness.select(rows, {"task": task, "network": network})
        entry = {"task": f"`{task}`", "network": WORDS[network]}
        entry |= {"parameters": str(mine[0]["parameters"]), "rate": str(mine[0]["rate"])}
        for part in ("validation", "test"):
            values = [row[part] for row in mine]
            means[task, network] = mean = statistics.fmean(values)
            entry[f"{part} (%)"] = f"{mean:.2f} ± {statistics.stdev(values):.2f}"
        table.append({**entry, "seeds": str(len(mine))})
    changes = [
        f"{means[task, claims.ROUNDED] - means[task, 'learned']:+.1f} points on `{task}`"
        for task, network in means
        if network == claims.ROUNDED
    ]
    return [
        *paragraph("Mean and standard deviation over the seeds."),
        *markdown(table),
        *paragraph(
            "Learned delays were also rounded after the training, as arXiv 2306.17670 does. A "
            "rounded weight is at one step. Before, it also reached the neighbouring steps. That "
            f"changes the accuracy on the test examples: {', '.join(changes)}."
        ),
    ]


def speed_lines(rows: Sequence[Row]) -> list[str]:
    """A table of the times."""
    return markdown(
        [
            {
                "task": f"`{row['task']}`",
                "network": WORDS[row["network"]],
                "training step (ms)": str(row["ms"]),
                "times as long": str(row["over base"]),
                "as": WORDS[row["base"]],
            }
            for row in rows
        ]
    )


def page(folder: Path) -> str:
    """The text of the page for the results in a folder."""
    reports: list[Report] = [
        {"file": path.name, **harness.read_json(path)}
        for path in sorted(folder.glob("claims-*-cpu.json"))
    ]
    rows = [row for report in reports for row in report["results"]]
    lines = [HEAD]
    for title, part, words in (
        ("What holds", "training", claim_lines),
        ("All networks", "training", network_lines),
        ("The speed of a step", "speed", speed_lines),
    ):
        mine = harness.select(rows, {"part": part})
        lines += [f"## {title}", "", *(words(mine) if mine else [NOT_MEASURED, ""])]
    lines += [
        *paragraph(
            "A step is the output, the loss and all gradients of one batch, as `python "
            "benchmarks/claims.py --threads 1 --timing` measures it on an idle machine. "
            "The gaussians of delays have their last width, 0.23, as in three quarters of a "
            "training. [Performance](performance.md) has large layers and a whole model."
        ),
        *["## How the results came about", ""],
        *(origin_rows(reports) if reports else [NOT_MEASURED, ""]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Writes or checks the page; returns the exit status."""
    parser = argparse.ArgumentParser(description="Writes docs/claims.md.")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="PATH")
    options = parser.parse_args()
    text = page(options.results)
    if options.check:
        return int(differs(options.page, text, "python docs/make_claims.py"))
    options.page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
