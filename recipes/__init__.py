"""The recipe of the embedded models, step by step, from package files to weights.

| step | module | output |
|---|---|---|
| 0 | `images.raw` | raw image files, from packages |
| 1 | `images.data` | all training images, in one .npz |
| 2 | `training.train_vae` | the autoencoder |
| 3 | `training.train_unet` | UNet and text encoder, a checkpoint |
| 4 | `training.export` | `dori_fast/demo/model`, a diffusers directory |
| 5 | `images.assets` | `dori_fast/demo/images`, sample prompts and captions to retain |
| 6 | `measuring.measure`, `measuring.grid` | the tables of the model card, the image grid |
| 7 | `training.finetuned` | the fine-tuned model, a diffusers directory |

Run a step from the repository with `python -m recipes.<module>`; `--help` lists its options. The
package does not import or ship this folder.
"""
