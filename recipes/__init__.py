"""Training of the embedded models, step by step, from package files to weights.

| step | module | result |
|---|---|---|
| 0 | `pictures.raw` | raw images, from packages |
| 1 | `pictures.data` | all training images, one .npz |
| 2 | `training.train_vae` | the autoencoder |
| 3 | `training.train_unet` | UNet and text encoder, a checkpoint |
| 4 | `training.export` | `demo/model`, a plain diffusers directory |
| 5 | `pictures.assets` | `demo/images`, sample prompts and captions to retain |
| 6 | `measuring.measure`, `measuring.grid` | tables of the model card, the grid of images |
| 7 | `training.finetuned` | the fine-tuned model, a diffusers directory |

Run each as `python -m recipes.<module>`; `--help` lists its arguments.
"""
