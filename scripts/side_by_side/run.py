"""One run: the rounds that the budget pays for, or as many as are asked for, in turns."""

import argparse
import json
import sys
import time
from types import SimpleNamespace

import torch
from attack import Attack
from victim import Victim, compare

WARM_UP = 10  # rounds that are not timed


def run(config: SimpleNamespace, args: argparse.Namespace) -> None:
    """Does what the command line says."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    attack = Attack(config, Victim(config))
    for network in (attack.generator, attack.clones, attack.victim):
        network.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    if args.turns:
        for line in sys.stdin:
            attack.play(int(line))
            print(f"torch {torch.__version__}, {args.threads} threads", flush=True)
        return
    start = time.perf_counter()
    warm_up = min(WARM_UP, attack.rounds // 2)
    attack.play(warm_up)
    warm = time.perf_counter()
    attack.play(attack.rounds - warm_up)
    end = time.perf_counter()
    result = {
        "torch": torch.__version__,
        "threads": args.threads,
        "seed": args.seed,
        "queries": attack.rounds * attack.queries,
        "queries_per_second": (attack.rounds - warm_up) * attack.queries / (end - warm),
        "seconds": end - start,
    }
    if args.data:
        result |= compare(attack.victim.classify, attack.clones.vote, args.data)
    for name, value in result.items():
        print(f"{name:<20} {value:.4g}" if isinstance(value, float) else f"{name:<20} {value}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
