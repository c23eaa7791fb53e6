"""A detector of a third party, as its package would have it."""

from dori_fast.detect import SeededDetector
from dori_fast.ops import noise_difference


class Loudest(SeededDetector):
    """The largest noise difference of any seed, at a timestep of one's own."""

    name = "loudest"

    def __init__(self, seeds=4, *, timestep=600):
        self.seeds, self.timestep = tuple(range(seeds)), timestep

    def config(self):
        return {"name": self.name, "seeds": list(self.seeds), "timestep": self.timestep}

    def per_seed(self, model, condition):
        shared = model.share_noise(self.seeds, self.timestep)

        def norms(part, _):
            with_text = model.epsilon_shared(part, shared)
            return noise_difference(with_text, model.epsilon_uncond(part, shared))

        return self.in_chunks(model, condition, norms)

    def reduce(self, per_seed):
        return per_seed.max(dim=1).values
