"""Serves a victim over HTTP, so that an extraction can be tried on a service of your own.

usage: python scripts/serve_victim.py --weights W --dataset D [--data_dir DIR] [--port P]
           [--labels soft|hard] [--top_k K] [--decimals D] [--requests_per_second R]
           [--failures F [--seed S]] [--token_env NAME] [--count FILE] [--host H]

W is a .safetensors, .pt or .pth file, or embedded:NAME. The address is printed; it takes
{"instances": [image, ...]} and answers {"predictions": [...]}, as TensorFlow Serving does.
It needs pip install 'disguide_jax[serve]'.
"""

import argparse
import os
import signal
import sys

from disguide_jax.errors import UserError, exit_status


def main() -> None:
    """Serves what the command line names, until Ctrl-C or SIGTERM."""
    usage = __doc__.split("usage: ")[1].split("\n\n")[0]
    parser = argparse.ArgumentParser(usage=usage, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--weights", required=True, help="safetensors, .pt, .pth or embedded:NAME")
    add("--dataset", required=True, help="whose classes, channels and normalisation it has")
    add("--data_dir", default="", help="where a data set of your own lies")
    add("--host", default="127.0.0.1", help="0.0.0.0 is reached from other machines, too")
    add("--port", type=int, default=8501, help="0 is any that is free")
    add("--labels", choices=("soft", "hard"), default="soft")
    add("--top_k", type=int, default=0, help="probabilities of so many classes only; 0: of all")
    add("--decimals", type=int, default=0, help="to which probabilities are rounded; 0: not")
    add("--requests_per_second", type=float, default=0.0, help="answers 429 beyond it; 0: never")
    add("--failures", type=float, default=0.0, help="share of requests that are answered 500")
    add("--seed", type=int, default=0, help="of the failures")
    add("--token_env", default="", help="the environment variable with the token to ask for")
    add("--count", default="", metavar="FILE", help="gets each request's number of images")
    args = vars(parser.parse_args())
    for each in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again when it is done
        signal.signal(each, lambda *_: sys.exit(0))
    try:
        from disguide_jax.victims import serve
    except ModuleNotFoundError as error:
        raise UserError(f"{error}: pip install 'disguide_jax[serve]'") from error
    token_env = args.pop("token_env")
    token = os.environ.get(token_env, "").strip()
    if token_env and not token:
        raise UserError(f"--token_env: no environment variable {token_env} is set")
    model = serve.load(args.pop("weights"), args.pop("dataset"), args.pop("data_dir"))
    host, port = args.pop("host"), args.pop("port")
    options = serve.Options(**args, token=token)
    serve.serve(model, options, host, port)


if __name__ == "__main__":
    sys.exit(exit_status(main))
