"""DisGUIDE in plain PyTorch, with the configuration and the victim of a run of this project.

usage: python scripts/side_by_side --config_json RUN/config.json [--data FILE.npz] [--seed S]
           [--budget QUERIES] [--threads T] [--json OUT | --turns]

Needs torch, safetensors and NumPy, and nothing else of this project; knows images of 32x32 only.
Prints the accuracy of the soft vote on `test_images` and `test_labels` of FILE.npz, if one is
named, and queries per second. With --turns it plays as many rounds as each line of its input
says, and answers when it has.
"""

import argparse
import os
import pathlib

import told


def main() -> None:
    """Reads the command line and refuses what is not done here."""
    parser = argparse.ArgumentParser(prog="side_by_side", description=__doc__.splitlines()[0])
    parser.add_argument("--config_json", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=int, help="in place of the configuration's")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--turns", action="store_true")
    args = parser.parse_args()
    try:
        config = told.read_config(args.config_json, args.budget)
        if args.data and not args.data.is_file():
            raise ValueError(f"--data: there is no file {args.data}")
    except ValueError as error:
        parser.error(str(error))
    try:
        import run  # last, because mistakes can be told without torch
    except ModuleNotFoundError as error:
        parser.error(f"{error.name} is not installed; torch, safetensors and numpy are needed")
    run.run(config, args)


if __name__ == "__main__":
    main()
