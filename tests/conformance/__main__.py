"""transformers' common tests on merged models, beside plain ones: `make conformance`, or `python -m tests.conformance`.

Every test has to come out as it does for the plain model, but those that differences.py names, which have to differ.
The counts go to results/conformance/table.md, and into docs/ecosystem.md where it is marked.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

import transformers

from sttm.errors import SttmError
from tests.conformance import cases, source
from tests.conformance.differences import ALL, DIFFERENCES, named
from tests.helpers import ROOT


def main() -> int:
    """Run all; return 0 if all is as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--transformers", metavar="FOLDER", help="a checkout of transformers (default: the sdist)")
    parser.add_argument("--family", choices=cases.FAMILIES, action="append", help="only this family")
    chosen = parser.parse_args()
    try:
        mixin = source.mixin(source.find(chosen.transformers))
    except SttmError as error:
        print(error, file=sys.stderr)
        return 2
    rows, wrong = [], []
    for family in chosen.family or cases.FAMILIES:
        found = {compute: cases.outcomes(cases.case(mixin, family, compute)) for compute in (None, 1.0, 0.7)}
        plain = found[None]
        for compute in (1.0, 0.7):
            changed = {name for name in plain if _kind(found[compute][name]) != _kind(plain[name])}
            for name in sorted(changed ^ named(family, compute)):
                wrong.append(f"{family} at {compute:g}: {name}: {plain[name]} plain, {found[compute][name]} merged")
        counts = {compute: Counter(_kind(outcome) for outcome in of.values()) for compute, of in found.items()}
        rows.append((family, counts))
        print(family, *(f"{compute or 'plain'}: {dict(count)}" for compute, count in counts.items()), flush=True)
        for name, outcome in plain.items():
            if _kind(outcome) == "failed":
                print(f"  plain too: {name}: {outcome}")
    print(*wrong, sep="\n")
    if not wrong and not chosen.family:
        _write(rows)
    return 1 if wrong else 0


def _kind(outcome: str) -> str:
    return outcome if outcome in ("passed", "skipped") else "failed"


def _write(rows: list[tuple[str, dict[float | None, Counter[str]]]]) -> None:
    """Write the counts, and the tests that differ, to a file and the page that shows it."""
    lines = [
        f"transformers {transformers.__version__}, `ModelTesterMixin`:",
        "",
        "| family | plain: pass, fail, skip | compute 1 | compute 0.7 |",
        "|---|---|---|---|",
    ]
    for family, counts in rows:
        figures = [
            ", ".join(str(counts[compute][kind]) for kind in ("passed", "failed", "skipped"))
            for compute in (None, 1.0, 0.7)
        ]
        lines.append(f"| {family} | {' | '.join(figures)} |")
    lines += ["", "At compute 1 every test comes out as for the plain model. At 0.7 these do not:", ""]
    for one in DIFFERENCES:
        families = "" if one.families == ALL else f", of {', '.join(one.families)}"
        lines.append(f"- `{one.test}`{families}: {one.reason}.")
    folder = ROOT / "results" / "conformance"
    folder.mkdir(parents=True, exist_ok=True)
    table, page = "\n".join(lines).rstrip() + "\n", ROOT / "docs" / "ecosystem.md"
    (folder / "table.md").write_text(table, encoding="utf-8")
    before, mark, after = page.read_text(encoding="utf-8").partition("<!-- results/conformance/table.md -->\n")
    if not mark:
        return
    page.write_text(f"{before}{mark}\n{table}\n{after[after.index('<!-- end -->') :]}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
