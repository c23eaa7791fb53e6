"""The recipe of the embedded model, step by step, from package files to weights.

| step | module | makes |
|---|---|---|
| 0 | `raw` | the raw pictures, from packages |
| 1 | `data` | every training picture, one .npz |
| 2 | `train_vae` | the autoencoder |
| 3 | `train_unet` | UNet and text encoder, a checkpoint |
| 4 | `export` | `demo/model`, a plain diffusers directory |
| 5 | `assets` | `demo/images` and the sample prompts |
| 6 | `measure`, `grid` | the figures of the model card, the picture grid |

Each is run as `python -m recipes.<module>`; `--help` says what it takes.
"""
