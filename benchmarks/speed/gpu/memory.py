"""Peak memory of full batches against what two small batches predict.

The automatic batch size extrapolates the peaks of 2 and 4 samples. This measures the same peaks by
public calls, forward and with gradients, and decoding by the image autoencoder; a row has the
measured peak, and another its ratio to the prediction.

    python -m benchmarks.speed.gpu.memory --model sd14
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

import dori_fast as df
from benchmarks import harness
from benchmarks.speed.gpu.backward import passes
from benchmarks.speed.gpu.common import parsed, parser_of, peak_gigabytes
from benchmarks.speed.random_models import random_model

_PROBES = (2, 4)


def decoding(model: df.Denoiser, samples: int) -> Callable[[], object]:
    """A call that decodes so many latents."""
    latents = model.noise(range(samples))

    def decode() -> object:
        with torch.no_grad():
            return model.autoencoder.decode(latents[:, None], [0])

    return decode


def main(arguments: list[str] | None = None) -> int:
    """Measure and predict."""
    parser = parser_of("memory", __doc__, model="sd14")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    options = parsed(parser, arguments)
    recorder = harness.Recorder.of(
        options, f"python -m benchmarks.speed.gpu.memory --model {options.model}"
    )
    common = {"op": "memory", "provider": "dori_fast", "dtype": options.dtype}
    model = None
    with recorder.case(**common, mode="automatic", shape=options.model) as case:
        model = random_model(options.model, options.dtype, options.device, with_vae=True)
        case.write([model.batch_size], metric="batch_size", unit="samples")
        if options.device == "cuda":
            free, total = torch.cuda.mem_get_info()
            case.write([free / 1e9], metric="free_memory", unit="GB", note=f"of {total / 1e9:.0f}")
    if model is None:
        return recorder.finish()

    def peak(mode: str, samples: int) -> float:
        model.batch_size = samples
        call = decoding(model, samples) if mode == "decode" else passes(model, samples)[mode]
        call()
        found = peak_gigabytes(call, options.device)
        if model.batch_size != samples:
            raise harness.NotHere(f"memory ran out; batches were of {model.batch_size}")
        return found

    for mode in ("forward", "forward_backward", "recomputed", "decode"):
        probes: list[float] = []
        with recorder.case(**common, mode=mode, shape=f"{options.model}:probes"):
            probes = [peak(mode, n) for n in _PROBES]
        for samples in options.batches if probes else ():
            shape = f"{options.model}:{samples}"
            with recorder.case(**common, mode=mode, shape=shape, x=samples) as case:
                slope = (probes[1] - probes[0]) / (_PROBES[1] - _PROBES[0])
                predicted = probes[0] + (samples - _PROBES[0]) * slope
                found = peak(mode, samples)
                case.write([found], metric="peak_memory", unit="GB")
                case.write([found / predicted], metric="over_prediction", unit="ratio")
    return recorder.finish()


if __name__ == "__main__":
    sys.exit(main())
