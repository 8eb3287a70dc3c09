"""How well outcomes are read off talk: people of CraigslistBargain and CaSiNo, whose deals are known from their forms.

    python scripts/measure_negotiation.py DATA/craigslist_bargain/dev.json DATA/casino/casino_train.json

Only messages are read. Printed are precision and recall of deals; and the share of true deals found whose price is
right to within 5 %, or in which all nine packages went where they went.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from star_tl.data.scenarios import camp_of, scenario_of
from star_tl.evaluation.allotment import allotment
from star_tl.evaluation.negotiation import outcome

FORMS = ("Submit-Deal", "Accept-Deal", "Reject-Deal", "Walk-Away")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("data", type=Path, nargs="+")
    for path in ap.parse_args().data:
        records = json.loads(path.read_text())
        camps = "participant_info" in records[0]
        found = read_camps(records) if camps else read(records)
        both, said, true, right, n = (found[k] for k in ("both", "said", "true", "right", "n"))
        print(f"{path.name}: {n} talks with words, {true} deals; read off: {said}")
        print(f"precision {both / said:.2f}, recall {both / true:.2f}")
        if camps:
            print(f"who takes what is told in {found['whole']}, and right in {right / found['whole']:.2f}")
        else:
            print(f"price within 5 % {right / both:.2f}")


def read(records: list[dict]) -> dict[str, int]:
    """Counts: talks, true deals, deals read, both, and of these the right price."""
    counts = dict.fromkeys(("n", "true", "said", "both", "right"), 0)
    for number, record in enumerate(records):
        scenario = scenario_of(record, number)
        words = [e for e in record["events"] if e["action"] == "message"]
        texts = [e["data"] for e in words]
        if scenario is None or len(texts) < 4:
            continue
        told = outcome(texts, scenario, [str(e["agent"]) for e in words])
        offer = record["outcome"]["offer"] or {}
        true = bool(record["outcome"]["reward"]) and bool(offer.get("price"))
        counts["n"] += 1
        counts["true"] += true
        counts["said"] += told.deal
        counts["both"] += told.deal and true
        if told.price is not None and true:
            counts["right"] += abs(told.price - offer["price"]) <= 0.05 * offer["price"]
    return counts


def read_camps(records: list[dict]) -> dict[str, int]:
    """Counts: talks, true deals, deals read, both, true deals in which everything is divided, of these right ones."""
    counts = dict.fromkeys(("n", "true", "said", "both", "whole", "right"), 0)
    for record in records:
        camp = camp_of(record)
        if camp is None:
            continue
        first = next(iter(record["participant_info"]))
        words = [m for m in record["chat_logs"] if m["text"] not in FORMS]
        sides = ["user" if m["id"] == first else "assistant" for m in words]
        told = allotment([m["text"] for m in words], camp, sides)
        true = any(m["text"] == "Accept-Deal" for m in record["chat_logs"])
        counts["n"] += 1
        counts["true"] += true
        counts["said"] += told.deal
        counts["both"] += told.deal and true
        if told.user is not None and true:
            form = [m for m in record["chat_logs"] if m["text"] == "Submit-Deal"][-1]
            got = form["task_data"]["issue2youget" if form["id"] == first else "issue2theyget"]
            counts["whole"] += 1
            counts["right"] += told.user == {item.lower(): int(n) for item, n in got.items()}
    return counts


if __name__ == "__main__":
    main()
