"""Times rounds of this program and of scripts/side_by_side, which is PyTorch, in turns.

usage: python scripts/race.py --config F --torch_python PYTHON --json OUT [--rounds R] [--seconds S]

A turn is R rounds; turns are taken for S seconds, three each at least, on the cores that this
process may use (`taskset`). Our replay is full; theirs begins empty, and costs more full.
"""

import pathlib
from subprocess import PIPE, Popen

import numpy as np
from absl import flags

from disguide_jax import cli, paths
from disguide_jax.config import Config, to_dict
from disguide_jax.errors import UserError

FLAGS, OTHER = flags.FlagValues(), str(pathlib.Path(__file__).with_name("side_by_side"))
flags.DEFINE_string("torch_python", None, "A Python that has torch.", flag_values=FLAGS)
flags.DEFINE_string("json", None, "Where the results go.", flag_values=FLAGS)
flags.DEFINE_integer("rounds", 100, "In a turn.", 1, flag_values=FLAGS)
flags.DEFINE_float("seconds", 60.0, "Turns are taken so long.", 0.0, flag_values=FLAGS)


def main(values: flags.FlagValues, config: Config) -> None:
    """Races what the command line names."""
    from disguide_jax.files import atomic, workdir
    from disguide_jax.run import program
    from disguide_jax.study import measure, rounds

    cli.require(values, "torch_python", "json")
    path, run = paths.writable(values.json), program.build(rounds.without_files(config, print))
    them = [str(paths.expanded(values.torch_python)), OTHER, "--turns", "--config_json", str(path)]
    report = {"hardware": measure.hardware(), "config": to_dict(run.config), **workdir.provenance()}
    ours = rounds.Playing(run, rounds.make_call(run))
    num_rounds = values.rounds * run.config.rounds_per_call

    def play() -> None:
        [ours.play() for _ in range(values.rounds)]

    def ask() -> None:
        print(num_rounds, file=theirs.stdin, flush=True)
        report["torch"] = next(iter(theirs.stdout or ())).strip()

    atomic.write_json(path, report)  # where they find the configuration
    try:
        with Popen(them, text=True, stdin=PIPE, stdout=PIPE) as theirs:
            times = measure.take_turns({"jax": play, "torch": ask}, values.seconds)
    except (OSError, StopIteration) as error:
        raise UserError(f"they do not play: {str(error) or 'see above'}") from error
    for name, seconds in times.items():
        low, median, high = np.quantile(num_rounds / seconds, (0, 0.5, 1)) * run.stages[-1].queries
        print(f"{name:<6} {low:>9,.1f} to {high:>9,.1f} queries/s, median {median:>9,.1f}")
        report[f"{name}_queries_per_second"] = {"min": low, "median": median, "max": high}
    atomic.write_json(path, report)


if __name__ == "__main__":
    cli.run(main, FLAGS, Config)
