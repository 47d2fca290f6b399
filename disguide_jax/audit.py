"""Tells how well a classifier can be copied through its answers, and what would help.

usage: python -m disguide_jax.audit --config configs/audit_NAME.py[:variant]
           [--config.key=value ...] [--workdir DIR]

It writes WORKDIR/report.html and report.json. The same command again continues where it stopped.
"""

import pathlib
import shlex
import sys

from disguide_jax.errors import exit_status


def main() -> int | None:
    """Runs what the command line says; returns the exit status."""
    from absl import flags  # here, where Ctrl-C is one line and no traceback

    from disguide_jax import cli
    from disguide_jax.audit_config import AuditConfig

    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Default: runs/<name of the audit>.", flag_values=values)
    typed = shlex.join(["python", "-m", "disguide_jax.audit", *sys.argv[1:]])

    def audit(values: flags.FlagValues, config: AuditConfig) -> None:
        from disguide_jax.study.auditing import audit

        workdir = pathlib.Path(values.workdir or pathlib.Path("runs") / config.name)
        audit.run(config, workdir, typed)

    return cli.call(audit, values, AuditConfig)


def run() -> None:
    """Parses the command line, runs, and exits."""
    sys.exit(exit_status(main))


if __name__ == "__main__":
    run()
