"""How well outcomes are read off talk: CraigslistBargain's people, whose deals are known from their buttons.

    python scripts/measure_negotiation.py DATA/craigslist_bargain/dev.json

Only messages are read. Printed are precision and recall of deals, and the share of true deals found whose price is
right to within 5 %.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from star_tl.data.scenarios import scenario_of
from star_tl.evaluation.negotiation import outcome


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("data", type=Path)
    args = ap.parse_args()
    found = read(json.loads(args.data.read_text()))
    both, said, true, right, n = (found[k] for k in ("both", "said", "true", "right", "n"))
    print(f"{n} talks with words, {true} deals; read off: {said}")
    print(f"precision {both / said:.2f}, recall {both / true:.2f}, price within 5 % {right / both:.2f}")


def read(records: list[dict]) -> dict[str, int]:
    """Counts: talks, true deals, deals read, both, and of these the right price."""
    counts = dict.fromkeys(("n", "true", "said", "both", "right"), 0)
    for number, record in enumerate(records):
        scenario = scenario_of(record, number)
        texts = [e["data"] for e in record["events"] if e["action"] == "message"]
        if scenario is None or len(texts) < 4:
            continue
        told = outcome(texts, scenario)
        offer = record["outcome"]["offer"] or {}
        true = bool(record["outcome"]["reward"]) and bool(offer.get("price"))
        counts["n"] += 1
        counts["true"] += true
        counts["said"] += told.deal
        counts["both"] += told.deal and true
        if told.price is not None and true:
            counts["right"] += abs(told.price - offer["price"]) <= 0.05 * offer["price"]
    return counts


if __name__ == "__main__":
    main()
