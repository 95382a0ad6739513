"""Fuzzes the operators and the layers against the oracle, and hostile arguments.

    python tests/fuzz/fuzz.py --seconds 60            a new seed, which is printed
    python tests/fuzz/fuzz.py --seconds 60 --seed 7   the same cases again
    python tests/fuzz/fuzz.py --case 123456           one case
    python tests/fuzz/fuzz.py --json '{...}'          one case, as a failure prints it
    python tests/fuzz/fuzz.py --hostile 123456        one hostile call

Each case has a seed of its own. A failure prints it, and the whole case: add that line to
``corpus.json``, which the tests replay.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

# The folder above, so that ``fuzz`` is the package and not this file.
sys.path[0] = str(Path(__file__).resolve().parents[1])

# A thread that waits gives its core to others: on a busy machine all else takes turns.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from fuzz.checks import check  # noqa: E402
from fuzz.draw import Case, draw  # noqa: E402
from fuzz.hostile import draw_attack, make_attack, run_hostile, serve  # noqa: E402


def _report(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:600]}"


def run_case(case: Case) -> str:
    """Runs a case; returns ``done``, ``refused``, or what went wrong."""
    try:
        return check(case)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return _report(error)


def main() -> int:
    """Runs the fuzzer."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long; default 60")
    parser.add_argument("--seed", type=int, help="of the whole run; a new one unless given")
    parser.add_argument("--case", type=int, help="run the case of this seed alone")
    parser.add_argument("--json", help="run this case alone")
    parser.add_argument("--hostile", type=int, help="make the hostile call of this seed alone")
    parser.add_argument("--serve", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--most", type=int, default=10, help="failures to stop after; default 10")
    args = parser.parse_args()
    if args.serve is not None:
        serve(*args.serve)
        return 0
    if args.hostile is not None:
        attack = draw_attack(args.hostile)
        print(json.dumps(attack), flush=True)  # noqa: T201
        found = make_attack(attack)
        print(found or "done")  # noqa: T201
        return int(found is not None)
    if args.case is not None or args.json is not None:
        case = json.loads(args.json) if args.json else draw(args.case)
        outcome = run_case(case)
        print(json.dumps(case), outcome, sep="\n")  # noqa: T201
        return int(outcome not in ("done", "refused"))
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"fuzz: seed {seed}", flush=True)  # noqa: T201
    r = random.Random(seed)
    end = time.monotonic() + args.seconds
    outcomes: Counter[str] = Counter()
    failures = 0
    # A tenth of the time for hostile arguments, in a child process that may crash.
    for found in run_hostile(r.randrange(1 << 32), args.seconds / 10, outcomes):
        failures += 1
        print(f"FAILED {found}", flush=True)  # noqa: T201
    while time.monotonic() < end and failures < args.most:
        number = r.randrange(1 << 32)
        case = draw(number)
        outcome = run_case(case)
        known = outcome in ("done", "refused")
        outcomes[outcome if known else "failed"] += 1
        outcomes[f"{case['kind']} {case['mode']}"] += known
        if not known:
            failures += 1
            print(  # noqa: T201
                f"FAILED {outcome}\n  python tests/fuzz/fuzz.py --case {number}\n  "
                f"{json.dumps(case)}",
                flush=True,
            )
    cases = sum(outcomes[k] for k in ("done", "refused", "failed"))
    rest = ", ".join(f"{name} {count}" for name, count in sorted(outcomes.items()))
    print(f"fuzz: {cases} cases; {rest}")  # noqa: T201
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
