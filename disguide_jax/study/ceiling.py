"""What the clones of a configuration reach with real images: the ceiling of a data-free run."""

import jax
import tqdm

from disguide_jax.config import Config
from disguide_jax.core import learn, pixels, streams
from disguide_jax.core.types import Array, Key, Learner
from disguide_jax.files import datasets
from disguide_jax.run import evaluate, paying, program


def ceiling(config: Config) -> evaluate.Scores:
    """Trains the clones on the data set's training images with the victim's answers.

    They make as many updates as in the run, on batches as large, with its optimiser, rates and
    loss. Every image may be asked about in every batch: nothing here counts queries.

    Args:
      config: of the run.

    Returns:
      Their scores on the test images.

    Raises:
      UserError: a mistake in the configuration or the files.
    """
    run = program.build(config)
    kit, stage, net = run.kit, run.stages[-1], run.networks.clones
    victim = run.network_victim
    images, _ = datasets.load(run.config.dataset, "train", run.config.data_dir)
    init_key, key = jax.random.split(jax.random.key(run.config.seed))
    learner = learn.start(net.init(init_key), kit.tx.clones)

    @jax.jit
    def step(learner: Learner, images: Array, key: Key) -> Learner:
        chosen = jax.random.randint(key, (run.config.batch_size,), 0, len(images))
        seen = victim.to_input_space(pixels.decode(images[chosen]))
        answers = victim(seen)
        return learn.teach(learner, net, kit.tx.clones, kit.answers.loss, seen, answers)[0]

    on_device = jax.device_put(images)
    updates = range(stage.num_rounds * stage.clone_updates)
    for i in tqdm.tqdm(updates, "updates", leave=False, disable=None):
        learner = step(learner, on_device, streams.of_step(key, i, streams.ORDER))
    test_set = paying.make_test_set(run)
    return evaluate.make_evaluate(run.networks.exact_clones, victim)(learner.variables, test_set)
